-- A lock that is waited for keeps away all that come later.
SET LOCAL lock_timeout = '1s'
