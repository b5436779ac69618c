"""Product analytics: questions over events, each a function of a lazy frame and its roles.

    store = forebay.open("data")
    roles = read_roles("data")
    may = Period(date(2024, 5, 1), date(2024, 6, 1), zone="Europe/Berlin")
    funnel(store.scan(), roles, [Event("search"), Event("purchase")], may).steps

All have the form `function(frame, roles, …)`, read only the columns and rows that they need, and
return a frozen dataclass that holds the question's parameters and tidy frames. Where definitions
differ, the default is Amplitude's; each module says what it is and names the options' origins.
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
