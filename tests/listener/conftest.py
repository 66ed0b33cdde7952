from tests.admission.conftest import bare, line, redis_server, world

__all__ = ["bare", "line", "redis_server", "world"]
