"""attachgate: a streaming gateway that keeps a session's count of foreign products right."""

__version__ = "0.1.0"
