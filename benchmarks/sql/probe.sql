CREATE TABLE IF NOT EXISTS benchmark_probe (at timestamptz)
