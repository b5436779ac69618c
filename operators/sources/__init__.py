"""Where events come from: a Kafka topic, or files."""
