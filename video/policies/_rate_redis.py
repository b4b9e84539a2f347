"""A rate limiter's Redis store: the steps of `_rate_gcra` as one script that the server runs, by its clock.

It is the same algorithm, step by step (tests compare the two), in Lua since the server runs nothing else. Its
clock can be set; what that does is in `_rate_gcra`. A permit in flight is a lease here, since nobody on the
server knows whether a process lives: it ends by itself after `lease_seconds`.
"""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import urlsplit

from video.errors import ConfigError, MissingDependency, StoreError
from video.policies._checks import number
from video.policies._rate_gcra import BACK, BUSY, CUT, EARLY, INFINITE, LEAST, RECOVERY, Figures, Ticket
from video.policies._rate_stores import key_bytes

_ANSWER_SECONDS = 10.0
"""A server that does not answer for so long is out of order."""
_KEPT_SECONDS = 172800
"""A budget that nobody has used for two days is dropped; quotas last one."""

_SCRIPT = """
local names = {'interval', 'tolerance', 'burst', 'per_day', 'most', 'tat', 'tail', 'last', 'until', 'factor',
  'cut', 'generation', 'day', 'used', 'lease'}
local BACK, EARLY, BUSY, CUT, LEAST, RECOVERY = CONSTANTS
local step = ARGV[1]
local lasting = tonumber(ARGV[2])
local figures = {}
for i = 1, 5 do figures[i] = tonumber(ARGV[3 + i]) end
local a = {}
for i = 9, #ARGV do a[i - 8] = tonumber(ARGV[i]) end

local time = redis.call('TIME')
local wall = tonumber(time[1]) + tonumber(time[2]) / 1e6
-- Counted from 2025, so that a double resolves 15 ns.
local now = tonumber(time[1]) - 1735689600 + tonumber(time[2]) / 1e6
if ARGV[3] ~= '' then now = tonumber(ARGV[3]); wall = now end

local s = {}
local kept = redis.call('HMGET', KEYS[1], unpack(names))
if kept[1] then
  for i, name in ipairs(names) do s[name] = tonumber(kept[i]) end
else
  for i = 1, 5 do s[names[i]] = figures[i] end
  s.tat, s.tail, s.last = now, now, now
  s['until'], s.cut, s.day = -math.huge, -math.huge, -math.huge
  s.factor, s.generation, s.used, s.lease = 1, 0, 0, 0
end

local function requeue(at)
  s.tail = math.max(at + s.burst, math.min(s.tail, s.tat))
  s.generation = s.generation + 1
end

local function observe()
  local gap = now - s.last
  if gap < 0 then
    if gap >= -BACK then now = s.last; return end
    for _, name in ipairs({'tat', 'tail', 'last', 'until', 'cut'}) do s[name] = s[name] + gap end
    requeue(s.last)
  else
    local ready = s.tat - s.tolerance
    local over
    if ready > s.last then over = now - ready - s.burst else over = gap - s.interval / s.factor - s.burst end
    if over > 0 then s.tat = s.tat + over end
  end
  s.last = now
end

local function turn()
  local day = math.floor(wall / 86400)
  if day > s.day then s.day = day; s.used = 0
  elseif s.day > day + 1 then s.day = day end
end

local function flying()
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.17g', wall))
  return redis.call('ZCARD', KEYS[2])
end

local answer = {}
observe()

if step == 'claim' then
  local slot, generation, longest = a[1], a[2], a[3]
  local pace = s.interval / s.factor
  local tat, tail = s.tat, s.tail
  local new = slot == nil or generation ~= s.generation
  if new then slot = math.max(tail - s.burst, now) end
  local start = math.max(tat - s.tolerance, slot, s['until'])
  local wait = start - now
  local spent = false
  if s.per_day ~= math.huge then
    turn()
    if s.used >= s.per_day then
      spent = true
      wait = math.max(wait, (s.day + 1) * 86400 - wall, BUSY)
    end
  end
  local granted, kept_slot = 0, ''
  if not new then kept_slot = slot end
  if not spent then
    if wait <= EARLY and s.most ~= math.huge and flying() >= s.most then wait = BUSY
    elseif wait <= EARLY then
      wait, granted, kept_slot = 0, 1, slot
      s.tat = math.max(tat, now) + pace
      if new then s.tail = math.max(tail, start) + pace end
      if s.most ~= math.huge then
        s.lease = s.lease + 1
        redis.call('ZADD', KEYS[2], string.format('%.17g', wall + lasting), string.format('%d', s.lease))
        redis.call('EXPIRE', KEYS[2], math.ceil(lasting) + 1)
      end
      if s.per_day ~= math.huge then s.used = s.used + 1 end
    end
    if granted == 0 and new and wait <= longest then
      s.tail = math.max(tail, start) + pace
      kept_slot = start
    end
  end
  answer = {wait, granted, kept_slot, s.generation, now, tat, tail, s.tat, s.tail, s.lease,
    s.factor}
elseif step == 'undo' then
  local granted, generation = a[1], a[2]
  if granted == 1 then
    redis.call('ZREM', KEYS[2], string.format('%d', a[7]))
    s.used = math.max(0, s.used - 1)
    if s.tat == a[5] and s.tail == a[6] then s.tat, s.tail = a[3], a[4] end
  elseif generation == s.generation and s.tail == a[6] then s.tail = a[4] end
elseif step == 'release' then
  redis.call('ZREM', KEYS[2], string.format('%d', a[1]))
elseif step == 'penalize' then
  if now + a[1] > s['until'] then
    s['until'] = now + a[1]
    requeue(s['until'])
  end
elseif step == 'push_back' then
  if a[1] >= s.cut then
    s.factor = math.max(LEAST, s.factor * CUT)
    s.cut = now
    requeue(now)
  end
elseif step == 'succeed' then
  if s.factor < 1 then s.factor = math.min(1, s.factor + RECOVERY * s.interval / (60 * s.factor)) end
  answer = {s.factor}
elseif step == 'configure' then
  local same = true
  for i = 1, 5 do same = same and s[names[i]] == figures[i] end
  if not same then
    if s.tat > now then s.tat = now + (s.tat - now) * figures[1] / s.interval end
    local paced = figures[1] ~= s.interval
    for i = 1, 5 do s[names[i]] = figures[i] end
    if paced then requeue(now) end
  end
elseif step == 'look' then
  if s.per_day ~= math.huge then turn() end
  answer = {60 / s.interval * s.factor, s.factor, math.max(0, s['until'] - now), s.used, flying()}
end

local saved = {}
for _, name in ipairs(names) do
  table.insert(saved, name)
  table.insert(saved, string.format('%.17g', s[name]))
end
redis.call('HSET', KEYS[1], unpack(saved))
redis.call('EXPIRE', KEYS[1], math.max(KEPT, math.min(1e9, math.ceil(s['until'] - now))))
for i, value in ipairs(answer) do
  if type(value) == 'number' then answer[i] = string.format('%.17g', value) end
end
return answer
"""


def _script() -> str:
    """With our constants written into it."""
    constants = ", ".join(repr(value) for value in (BACK, EARLY, BUSY, CUT, LEAST, RECOVERY))
    return _SCRIPT.replace("CONSTANTS", constants).replace("KEPT", str(_KEPT_SECONDS))


class RedisStore:
    """Budgets on a Redis server (5 or later), in keys that begin with `prefix`.

    :param url: redis://, rediss:// or unix://, as redis-py takes it. Messages hold no password of it.
    :param lease_seconds: above 0; after this a permit in flight counts as given back.
    :param clock: in place of the server's; for tests.
    :raises MissingDependency: without the package redis.
    """

    def __init__(
        self, url: str, *, prefix: str = "video:rate", lease_seconds: float = 600.0, clock: Any = None
    ) -> None:
        number("lease_seconds", lease_seconds, above=0)
        try:
            import redis
        except ImportError as error:
            raise MissingDependency(
                "is not installed", subject="redis", cure="Run: pip install 'parallel-video[redis]'"
            ) from error
        try:
            self._server = redis.Redis.from_url(
                url, socket_timeout=_ANSWER_SECONDS, socket_connect_timeout=_ANSWER_SECONDS
            )
        except ValueError:
            raise ConfigError(
                "store is no Redis URL", cure="It takes redis://host:port/0, rediss:// or unix://."
            ) from None
        self._subject = _without_password(url)
        self._prefix = prefix
        self._lease = lease_seconds
        self._clock = clock
        self._failures = redis.RedisError, OSError
        self._script = self._server.register_script(_script())
        self._lock = threading.Lock()

    def claim(self, key: str, figures: Figures, now: float, ticket: Ticket, longest: float) -> float:
        slot = ticket.slot if ticket.slot == ticket.slot else None
        found = self._run(key, figures, "claim", slot, ticket.generation, min(longest, 1e300))
        wait = float(found[0])
        ticket.granted = found[1] == b"1"
        if found[2]:
            ticket.slot = float(found[2])
            if ticket.granted or ticket.slot != slot or ticket.generation != float(found[3]):
                ticket.moved = float(found[5]), float(found[6]), float(found[7]), float(found[8])
            ticket.generation = float(found[3])
        ticket.at = float(found[4])
        ticket.lease, ticket.factor = float(found[9]), float(found[10])
        return wait

    def undo(self, key: str, figures: Figures, now: float, ticket: Ticket) -> None:
        values = (float(ticket.granted), ticket.generation, *ticket.moved, ticket.lease)
        self._run(key, figures, "undo", *values)

    def apply(self, key: str, figures: Figures, now: float, step: str, *values: Any) -> Any:
        if step == "configure":
            values = ()  # they are the ones that come with each step
        found = [float(value) for value in self._run(key, figures, step, *values)]
        return found[0] if len(found) == 1 else tuple(found)

    def close(self) -> None:
        self._server.close()

    def _run(self, key: str, figures: Figures, step: str, *values: float | None) -> list[bytes]:
        # The braces keep both keys on one server of a cluster.
        name = key_bytes(f"{self._prefix}:{{{key}}}")
        clock = "" if self._clock is None else _word(self._clock())
        words = [step, _word(self._lease), clock, *map(_word, figures), *map(_word, values)]
        try:
            found: list[bytes] = self._script(keys=[name, name + b":flying"], args=words)
            return found or []
        except self._failures as error:
            raise StoreError(
                f"the Redis server cannot be used ({type(error).__name__})",
                subject=self._subject,
                cure="Is it running, and are its name, port and password right?",
            ) from error


def _word(value: float | None) -> str:
    """As Lua reads it: infinite is 1/0 there, whose word is "inf"; None is no number."""
    if value is None:
        return "nil"
    return "inf" if value == INFINITE else repr(float(value))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"
