"""The jobs of a sweep: a queue, and a process for each job."""
