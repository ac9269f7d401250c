"""rkchatd: a supervisor that owns sockets and the queue, and a worker process that owns the library's handle."""
