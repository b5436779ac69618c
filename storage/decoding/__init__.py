"""JSON messages to typed columns, for whoever has the messages: the job, a merge, a reader."""
