insert into chaos.bookings (run_id, attempt) values (%s, %s)
