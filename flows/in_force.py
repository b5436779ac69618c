"""The schema in force: what the settings declare, under the preset that the data was begun with.

Existing events were deduplicated by one key, and read from certain paths. So data that was begun
under an earlier form of a preset goes on under that, for good: its columns are decoded as before,
and its key stays. Data without an event begins under the preset as it is now. The first start
decides, and `DATA/form` keeps the decision: a manifest may be torn later.
"""

from forebay.flows.settings import Settings
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, FormatVersion
from forebay.storage.base.layout import Layout
from forebay.storage.formats.columns import ARROW_TYPES
from forebay.storage.formats.form import Form, claim_form, read_form
from forebay.storage.formats.schema import Schema, path_faults
from forebay.storage.formats.state import PartitionState, read_manifest

FORMER, PRESENT = Form(1), Form(2)


def schema_in_force(settings: Settings) -> Schema:
    """What these settings declare for the data directory that they name. Raises BadInput if their
    own columns don't fit, Corruption or FormatVersion if its record of that can't be read."""
    schema = settings.schema_under(_preset(settings))
    if faults := path_faults(schema.decoded):
        raise BadInput("\n".join(f"columns: {fault}" for fault in faults))
    return schema


def decided(settings: Settings, disk: Disk) -> Schema:
    """The same, and kept from now on."""
    if settings.preset.former is not None:
        form = PRESENT if _preset(settings) == settings.preset else FORMER
        claim_form(disk, Layout(settings.data_dir), form)
    return schema_in_force(settings)


def note_of(settings: Settings) -> str | None:
    """A line for whoever starts the job, where the former preset is in force."""
    if _preset(settings) == settings.preset:
        return None
    key = ", ".join(schema_in_force(settings).key)
    return (
        f"{settings.data_dir} was begun under an earlier form of the schema"
        f" {settings.event_schema!r} and goes on under it, with the dedup key {key}; the present"
        " form is for new data directories"
    )


def _preset(settings: Settings) -> Schema:
    """The preset of the settings, or its former one where the data was begun under that."""
    now, former = settings.preset, settings.preset.former
    disk, layout = Disk(), Layout(settings.data_dir)
    if former is None:
        return now
    kept = read_form(disk, layout)
    if kept is not None:
        return former if kept == FORMER else now
    unread = False
    for partition in layout.partitions():
        try:
            state = read_manifest(disk, layout.manifest(partition))
        except (Corruption, FormatVersion, OSError):
            unread = True  # whoever opens it reports that
            continue
        if state is not None and state.counters.accepted:
            same = _made_under(now, state) or not _made_under(former, state)
            return now if same else former
    return former if unread else now


def _made_under(preset: Schema, state: PartitionState) -> bool:
    """Whether the partition's columns are those of the preset, in type and place. Where no paths
    are recorded, each had one."""
    for column in preset.columns:
        known = state.schema.get(column.name)
        if known is None:
            continue
        paths = state.paths.get(column.name, column.paths[:1])
        if known != str(ARROW_TYPES[column.type]) or tuple(map(tuple, paths)) != column.paths:
            return False
    return True
