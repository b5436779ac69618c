"""Product analytics: questions about events, each a function of a lazy frame and its roles.

    store = forebay.open("data")
    roles = read_roles("data")
    may = Period(date(2024, 5, 1), date(2024, 6, 1), zone="Europe/Berlin")
    funnel(store.scan(), roles, [Event("search"), Event("purchase")], may).steps

Each is `function(frame, roles, …)`, reads only the columns and rows that it needs, and returns a
frozen dataclass with the question's parameters and tidy frames. Where definitions differ, the
default is Amplitude's; each module gives its definition and the origin of its options.
"""

from forebay.query.analytics.answer import Answer
from forebay.query.analytics.events import Event, Roles, Where, parse_filters
from forebay.query.analytics.funnel import Exclusion, Funnel, funnel
from forebay.query.analytics.lifecycle import Lifecycle, lifecycle
from forebay.query.analytics.paths import Paths, paths
from forebay.query.analytics.period import Period
from forebay.query.analytics.retention import Retention, retention
from forebay.query.analytics.roles import read_roles
from forebay.query.analytics.sample import Sample, sample
from forebay.query.analytics.segmentation import Segmentation, formula, segmentation
from forebay.query.analytics.sessions import Sessions, sessions
from forebay.query.analytics.stickiness import Stickiness, stickiness
from forebay.query.analytics.timeline import Timeline, timeline

__all__ = [
    "Answer",
    "Event",
    "Exclusion",
    "Funnel",
    "Lifecycle",
    "Paths",
    "Period",
    "Retention",
    "Roles",
    "Sample",
    "Segmentation",
    "Sessions",
    "Stickiness",
    "Timeline",
    "Where",
    "formula",
    "funnel",
    "lifecycle",
    "parse_filters",
    "paths",
    "read_roles",
    "retention",
    "sample",
    "segmentation",
    "sessions",
    "stickiness",
    "timeline",
]
