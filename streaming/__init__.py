"""The ground floor: records and schemas, the log, the exactly-once loop, the joiner, sources."""
