"""attachgate: a streaming gateway that keeps a session's count of foreign products right."""
