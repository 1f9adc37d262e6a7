"""The built-in monitor: scrapes every process, keeps an hour, watches for what should not be."""
