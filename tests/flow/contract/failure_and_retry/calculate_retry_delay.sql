-- calculate_retry_delay(base, attempts) = floor(base * 2^attempts).
select check_.is(pgflow.calculate_retry_delay(base, attempts), expected, format('%s * 2^%s', base, attempts))
from (values (5::numeric, 1, 10), (5, 2, 20), (1, 0, 1), (3, 3, 24), (0, 5, 0), (1.7, 2, 6), (0.5, 1, 1), (0.1, 3, 0), (0.3, 2, 1), (1, 10, 1024))
  as t (base, attempts, expected);
select check_.is(pgflow.calculate_retry_delay(5, 1), 10, 'with whole numbers');
select check_.ok(pgflow.calculate_retry_delay(5, 100) > 0, 'many attempts do not overflow');
