"""Which parts of the settings may be seen: in `config show`, in a fault, in an error.

What always holds: of what is passed through to others (`kafka.librdkafka`, `batch.catalog`), only
the values of names that are known to be harmless are shown; so a secret under a name that is
misspelt stays hidden too. User, password and query of a URL are hidden wherever it appears.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

HIDDEN = "********"

_PROPERTIES = re.compile(
    r"""(?x)
    (builtin\.features|check\.crcs|client\.(id|rack|dns\.lookup)|debug|security\.protocol
    |enable\.(auto\.commit|auto\.offset\.store|partition\.eof|gapless\.guarantee|idempotence
      |metrics\.push|random\.seed|sasl\.oauthbearer\.unsecure\.jwt|ssl\.certificate\.verification)
    |(fetch|queued|socket|reconnect|retry|connections|metadata|heartbeat|session|coordinator)
      (\.[a-z]+)+
    |(max|message|receive|topic|broker|api|statistics|log|auto|allow|consume|group)(\.[a-z]+)+
      |log_level|isolation\.level|partition\.assignment\.strategy|internal\.termination\.signal
    |sasl\.(mechanisms?|username|kerberos\.(service\.name|principal|keytab)
      |oauthbearer\.(method|client\.id|scope|token\.endpoint\.url))
    |ssl\.(ca\.(location|certificate\.stores)|certificate\.location|crl\.location|key\.location
      |keystore\.location|cipher\.suites|curves\.list|sigalgs\.list
      |endpoint\.identification\.algorithm|engine\.(location|id)))
    """
)
"""librdkafka's names whose values are shown."""
_CATALOG = re.compile(
    r"""(?x)
    (type|uri|warehouse|prefix|ref|py-io-impl|py-catalog-impl|echo|init_catalog_tables|pool_pre_ping
    |(s3|glue|client|dynamodb|rest)\.(endpoint|region|signing-region|signing-name|profile-name
      |proxy-uri|connect-timeout|request-timeout|force-virtual-addressing|sigv4-enabled
      |anonymous|role-session-name|role-arn|resolve-region|id|skip-archive|max-retries|retry-mode)
    |(adls|gcs)\.(endpoint|account-name|account-host|tenant-id|client-id|project-id
      |default-location|default-bucket-location|service\.host|version-aware)
    |hdfs\.(host|port|user)|hive\.(hive2-compatible|kerberos-authentication))
    """
)
"""pyiceberg's names whose values are shown."""
_LOOKS_SECRET = re.compile(r"-----BEGIN|\beyJ[A-Za-z0-9_-]{8,}\.|(?i:password|secret|token)\s*[=:]")
_IN_URL = (
    (re.compile(r"(:/{1,2})[^\s\"'<>]*@"), r"\1***@"),
    (re.compile(r"(?<![^\s,\"'/])[^\s,\"'<>/@]*:[^\s,\"'<>/]*@(?=[\w\[])"), "***@"),
    (re.compile(r"([a-zA-Z][\w+.-]*:/{1,2}[^\s?\"'<>]*\?)[^\s\"'<>]+"), r"\1***"),
)
"""A path that was made of a URL has one slash where the URL had two."""


def masked(text: str) -> str:
    """The text without the user, password and query of any URL or `user:password@host` in it."""
    for pattern, instead in _IN_URL:
        text = pattern.sub(instead, text)
    return text


def _shown(harmless: re.Pattern[str], name: str, value: object) -> object:
    if not harmless.fullmatch(name):
        return HIDDEN
    if not isinstance(value, str):
        return value
    return HIDDEN if _LOOKS_SECRET.search(value) else masked(value)


shown_property = partial(_shown, _PROPERTIES)
"""A value that is passed through to librdkafka."""
shown_catalog = partial(_shown, _CATALOG)
"""A value that is passed through to pyiceberg."""


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON types, as they may be shown."""
    found: dict[str, Any] = _masked_all(values)
    properties, catalog = values["kafka"]["librdkafka"], values["batch"]["catalog"]
    found["kafka"]["librdkafka"] = {k: shown_property(k, v) for k, v in properties.items()}
    found["batch"]["catalog"] = {k: shown_catalog(k, v) for k, v in catalog.items()}
    return found


def _masked_all(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: _masked_all(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_all(one) for one in value]
    return value
