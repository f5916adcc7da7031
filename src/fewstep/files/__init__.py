"""Files of others, read without trust: headers, configurations, what a file is. No weight is loaded."""
