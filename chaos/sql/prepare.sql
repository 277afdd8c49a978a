-- What callers and flows write of their own, in the same transactions as their requests and steps.
create schema chaos;
create table chaos.orders (request_id uuid primary key, mark text not null);
create table chaos.bookings (run_id uuid not null, attempt int not null);
