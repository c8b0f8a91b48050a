"""The Protocols that plug-ins implement (docs/plugins.md), as plug-ins import them; defined in engine.core.seams."""

from engine.core.seams import (
    Policy,
    Scorer,
    ScoringRecord,
    Session,
    User,
    UserSession,
    World,
)

__all__ = ["Policy", "Scorer", "ScoringRecord", "Session", "User", "UserSession", "World"]
