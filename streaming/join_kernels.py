"""The compiled part of the joiner: see `streaming.impressions` for what it does and why.

Everything is held in pools, arrays of records chained through `next`: by a list of the free ones
and by one queue for each kind of waiting. The functions pass on `join`, which is

* `state`: (keys, requests, open, waiting, histories, kept, passed_over, queues, meta), where `keys`
  leads from a key to the slot of its impression, or as -2 - n to the first feedback that waits
  for it, and `requests` from a request to the history that its impressions share; `kept` is what
  the histories hold, an array each for actions, words that were searched for, and items that were
  passed over; the last are collected here, in the rings `passed_over`;
* `rules`: one record with the fields of RULES;
* `events`: with the fields of EVENT;
* `asked`: (offsets, records) of actions and of searches, handed in beside the events;
* `out`: (rows, labels, histories), filled from the front; `histories` are (offsets, records) of
  actions, searches and items passed over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from streaming.event_columns import NONE, Ids
from streaming.kernels import (
    EMPTY,
    compiled_in_place,
    get,
    internal_in_place,
    mix,
    put,
    remove,
)
from streaming.prefetch import AHEAD, prefetch, prefetch_home
from streaming.rings import are_full, copy_of, new_place

# What is known of everything that is held.
_HELD = [
    ("key", np.int64),  # of request and item; EMPTY in a free place
    ("user_id", np.int64),
    ("item_id", np.int64),
    ("request_id", np.int64),
    ("at_us", np.int64),
    ("due_us", np.int64),  # in the time of the partition
    ("next", np.int32),  # in its queue, or in the list of free places
    ("history", np.int32),
    ("position", np.int32),
    ("scenario", np.int32),
    ("version", np.int64),  # that was served, NONE if it is not known
    ("score", np.float32),  # with which it was served, NaN if it is not known
]
OPEN = np.dtype(
    [
        *_HELD,
        ("opened_us", np.int64),
        ("decided", np.uint32),  # a bit a label
        ("positive", np.uint32),
    ]
)
WAITING = np.dtype(
    [
        *_HELD,
        ("sibling", np.int32),  # the next one that waits for the same impression
        ("first", np.int32),  # 1 for the first of the siblings
        ("kind", np.int32),
        ("label", np.int32),
        ("value", np.float32),
        ("reward", np.float32),
    ]
)
HISTORY = np.dtype(
    [
        ("request_id", np.int64),  # NONE for one that only a waiting feedback holds
        ("actions", np.int32),  # how many it has
        ("searches", np.int32),
        ("passed_over", np.int32),
        ("holders", np.int32),
        ("next", np.int32),  # in the list of free ones
    ]
)
MOST_LABELS = 31
# The configuration in numbers: of each window (shortest first) its length and the labels that it
# decides; of each label those that only come after it; negatives are kept up to a hash.
RULES = np.dtype(
    [
        ("windows", np.int64),
        ("labels", np.int64),
        ("window_us", np.int64, MOST_LABELS),
        ("decides", np.uint32, MOST_LABELS),
        ("follow", np.uint32, MOST_LABELS),
        ("wait_us", np.int64),
        ("remember_us", np.int64),
        ("keep", np.uint64),
        ("most_open", np.int64),
        ("most_waiting", np.int64),
    ]
)
# A row on its way out. `event` is the event that made it leave, `kind` EMPTY for a window's end.
ROW = np.dtype(
    [
        ("event", np.int64),
        ("user_id", np.int64),
        ("item_id", np.int64),
        ("request_id", np.int64),
        ("at_us", np.int64),
        ("position", np.int32),
        ("scenario", np.int32),
        ("version", np.int64),
        ("score", np.float32),
        ("kind", np.int32),
        ("reward", np.float32),
        ("joined", np.bool_),
    ]
)
# What is told of an event. `does` is NOTHING, IMPRESSION or ACTION; `label` the number of the label
# that it decides, or NONE, and `value` the label's value; `history` the number of its history among
# those handed in beside, or NONE. `now_us`, the time of the partition, never goes back.
NOTHING, IMPRESSION, ACTION = 0, 1, 2
EVENT = np.dtype(
    [
        ("now_us", np.int64),
        ("at_us", np.int64),
        ("user_id", np.int64),
        ("item_id", np.int64),
        ("request_id", np.int64),
        ("history", np.int32),
        ("position", np.int32),
        ("scenario", np.int32),
        ("version", np.int64),
        ("score", np.float32),
        ("kind", np.int32),
        ("label", np.int32),
        ("value", np.float32),
        ("reward", np.float32),
        ("does", np.int8),
    ]
)

# The places of `meta`: three pools (free list, rows ever used, rows in use), then the counts.
SLOTS, WAITERS, HISTORIES = 0, 3, 6
COUNTS = 9
COUNTED = (
    "opened", "negatives", "positives", "late", "repeated", "unmatched", "crowded_out",
    "sampled_out", "without_request",
)  # fmt: skip
_OPENED, _NEGATIVES, _POSITIVES, _LATE, _REPEATED, _UNMATCHED, _CROWDED, _SAMPLED, _REQUESTLESS = (
    range(COUNTS, COUNTS + len(COUNTED))
)
_MOST_SIBLINGS = 16
_SPARE_ROWS = _MOST_SIBLINGS + 2  # what one event may make leave, beside what is due
_NEVER = np.iinfo(np.int64).max


@compiled_in_place
def run(join: Any, start: int) -> Any:
    """Takes events from number `start` on, as long as there is room for what leaves, and for
    users who pass over something.

    Returns the number of the next event, and how many rows left.
    """
    state, _, events, _, out = join
    size = 0
    for i in range(start, events.size):
        if i + AHEAD < events.size and events[i + AHEAD].does != NOTHING:
            key = _key(events[i + AHEAD].request_id, events[i + AHEAD].item_id)
            prefetch_home(state[0], key)
        queue = _due(state, events[i].now_us)
        while queue != EMPTY:
            if size >= out[0].size - _SPARE_ROWS or are_full(state[6]):
                return i, size
            size = _settle(join, i, size, queue)
            queue = _due(state, events[i].now_us)
        if size >= out[0].size - _SPARE_ROWS:
            return i, size
        if events[i].does == IMPRESSION:
            size = _show(join, i, size)
        elif events[i].does == ACTION:
            size = _act(join, i, size)
    return events.size, size


@internal_in_place
def _due(state: Any, now_us: int) -> int:
    """The queue whose first entry is due earliest, and before now; EMPTY if there is none."""
    open_, waiting, queues = state[2], state[3], state[7]
    earliest, found = now_us, EMPTY
    for queue in range(queues.shape[0]):
        first = queues[queue, 0]
        if first != EMPTY:
            waits = queue == queues.shape[0] - 1
            due_us = waiting[first].due_us if waits else open_[first].due_us
            if due_us < earliest:
                earliest, found = due_us, queue
    return found


@internal_in_place
def _settle(join: Any, i: int, size: int, queue: int) -> int:
    """Deals with the first entry of a queue, which is due."""
    state, rules, events, _, out = join
    windows = rules.windows
    open_, queues, meta = state[2], state[7], state[8]
    if queue == windows + 1:
        return _give_up(state, out, i, size)
    slot = _pop(open_, queues, queue)
    if queue == windows:
        _prefetch_first(state, queue)
        _forget(state, slot)
        return size
    _prefetch_first(state, queue)
    negative = _undecided(open_[slot], rules, queue)
    open_[slot].decided |= negative
    all_labels = np.uint32((1 << rules.labels) - 1)
    if open_[slot].decided == all_labels:
        open_[slot].due_us = events[i].now_us + rules.remember_us
        _push(open_, queues, windows, slot)
        if open_[slot].positive == 0:
            _pass_over(state, open_[slot])
    else:
        open_[slot].due_us = open_[slot].opened_us + rules.window_us[queue + 1]
        _push(open_, queues, queue + 1, slot)
    negative &= ~_implied(open_[slot].positive, rules)
    if negative == 0:
        return size
    if mix(np.uint64(open_[slot].key)) > rules.keep:
        meta[_SAMPLED] += 1
        return size
    meta[_NEGATIVES] += 1
    labels = out[1]
    size = _emit(state, out, i, size, open_[slot])
    for label in range(rules.labels):
        if (negative >> np.uint32(label)) & np.uint32(1):
            labels[size - 1, label] = 0.0
    return size


@internal_in_place
def _prefetch_first(state: Any, queue: int) -> None:
    """Asks for what the next entry of a queue will need, and for the one behind it."""
    open_, first = state[2], state[7][queue, 0]
    if first != EMPTY:
        prefetch_home(state[0], open_[first].key)
        prefetch(state[4], open_[first].history)
        prefetch(open_, open_[first].next)


@internal_in_place
def _pass_over(state: Any, impression: Any) -> None:
    """Notes that an item was shown, and that nothing came of it."""
    records = state[6][3]
    if records.shape[1] > 0:
        row, place = new_place(state[6], impression.user_id, impression.at_us)
        records[row, place].id = impression.item_id
        records[row, place].at_us = impression.at_us


@internal_in_place
def _undecided(impression: Any, rules: Any, window: int) -> Any:
    """The labels that the end of a window decides: its own, and those that follow a negative."""
    follow = rules.follow
    ended = rules.decides[window] & ~impression.decided
    for label in range(rules.labels):
        bit = np.uint32(1 << label)
        # What followed may have come although this was never told.
        if ended & bit and not impression.positive & follow[label]:
            ended |= follow[label] & ~impression.decided
    return ended


@internal_in_place
def _implied(positive: Any, rules: Any) -> Any:
    """The labels that must have been positive, for one that follows them was."""
    implied = np.uint32(0)
    for label in range(rules.labels):
        if positive & rules.follow[label]:
            implied |= np.uint32(1 << label)
    return implied


@internal_in_place
def _show(join: Any, i: int, size: int) -> int:
    """Opens an impression, and meets it with the feedback that was waiting."""
    state, rules, events, asked, out = join
    keys, open_, waiting, queues, meta = state[0], state[2], state[3], state[7], state[8]
    now_us, user, item, request = (
        events[i].now_us,
        events[i].user_id,
        events[i].item_id,
        events[i].request_id,
    )
    if request == NONE or rules.labels == 0:
        meta[_REQUESTLESS] += 1
        return size
    key = _key(request, item)
    held = get(keys, key)
    if held >= 0:
        meta[_REPEATED] += 1
        return size
    if meta[SLOTS + 2] >= rules.most_open:
        _crowd_out(state)
    slot = _allocate(open_, meta, SLOTS)
    put(keys, key, slot)
    impression = open_[slot]
    impression.key = key
    impression.user_id, impression.item_id, impression.request_id = user, item, request
    impression.at_us, impression.opened_us = events[i].at_us, now_us
    impression.position, impression.scenario = events[i].position, events[i].scenario
    impression.version, impression.score = events[i].version, events[i].score
    impression.decided = impression.positive = np.uint32(0)
    impression.due_us = now_us + rules.window_us[0]
    _push(open_, queues, 0, slot)
    meta[_OPENED] += 1
    waiter = -2 - held if held < EMPTY else EMPTY
    if waiter == EMPTY:
        impression.history = _hold_request(state, request, asked, events[i])
    else:  # as it was before the feedback, which must not be told of itself
        impression.history = waiting[waiter].history
        state[4][impression.history].holders += 1
    while waiter != EMPTY:
        feedback = waiting[waiter]
        told = (feedback.kind, feedback.label, feedback.value, feedback.reward)
        size = _decide(state, out, i, size, slot, told)
        sibling = feedback.sibling
        # It stays in its queue, and leaves it unheard when its time comes.
        _release(state, feedback.history)
        feedback.key = EMPTY
        waiter = sibling
    return size


@internal_in_place
def _act(join: Any, i: int, size: int) -> int:
    """An action: feedback on an impression, or organic."""
    state, rules, events, _, out = join
    keys, meta = state[0], state[8]
    label, request = events[i].label, events[i].request_id
    organic = label == NONE
    organic |= request == NONE
    if organic:
        return _emit_event(join, i, size)
    key = _key(request, events[i].item_id)
    held = get(keys, key)
    if held >= 0:
        told = (events[i].kind, label, events[i].value, events[i].reward)
        return _decide(state, out, i, size, held, told)
    if rules.wait_us > 0:
        if meta[WAITERS + 2] >= rules.most_waiting:
            size = _give_up(state, out, i, size)
        if _wait(join, i, key):
            return size
    meta[_UNMATCHED] += 1
    return _emit_event(join, i, size)


@internal_in_place
def _decide(state: Any, out: Any, event: int, size: int, slot: int, told: Any) -> int:
    """A label of an impression became positive; a second time is a repeat and changes nothing."""
    open_, meta = state[2], state[8]
    kind, label, value, reward = told
    bit = np.uint32(1 << label)
    if open_[slot].positive & bit:
        meta[_REPEATED] += 1
        return size
    meta[_LATE if open_[slot].decided & bit else _POSITIVES] += 1
    open_[slot].positive |= bit
    open_[slot].decided |= bit
    size = _emit(state, out, event, size, open_[slot])
    out[0][size - 1].kind, out[0][size - 1].reward = kind, reward
    out[1][size - 1, label] = value
    return size


@internal_in_place
def _wait(join: Any, i: int, key: int) -> bool:
    """Lets feedback wait for its impression; False if too much of it waits for that one."""
    state, rules, events, asked, _ = join
    keys, waiting, queues, meta = state[0], state[3], state[7], state[8]
    last, siblings, held = EMPTY, 0, get(keys, key)
    waiter = -2 - held if held < EMPTY else EMPTY
    while waiter != EMPTY:
        last, siblings = waiter, siblings + 1
        waiter = waiting[waiter].sibling
    if siblings >= _MOST_SIBLINGS:
        return False
    new = _allocate(waiting, meta, WAITERS)
    feedback = waiting[new]
    feedback.key = key
    feedback.user_id, feedback.item_id = events[i].user_id, events[i].item_id
    feedback.request_id, feedback.at_us = events[i].request_id, events[i].at_us
    feedback.position, feedback.scenario = events[i].position, events[i].scenario
    feedback.version, feedback.score = events[i].version, events[i].score
    feedback.kind, feedback.label = events[i].kind, events[i].label
    feedback.value, feedback.reward = events[i].value, events[i].reward
    feedback.due_us = events[i].now_us + rules.wait_us
    feedback.sibling = EMPTY
    feedback.first = 1 if last == EMPTY else 0
    feedback.history = _keep_history(state, NONE, asked, events[i])
    if last == EMPTY:
        put(keys, key, -2 - new)
    else:
        waiting[last].sibling = new
    _push(waiting, queues, queues.shape[0] - 1, new)
    return True


@internal_in_place
def _give_up(state: Any, out: Any, event: int, size: int) -> int:
    """The first that waits has waited long enough: it leaves as an action without impression."""
    keys, waiting, queues, meta = state[0], state[3], state[7], state[8]
    waiter = _pop(waiting, queues, queues.shape[0] - 1)
    feedback = waiting[waiter]
    if feedback.key != EMPTY:
        meta[_UNMATCHED] += 1
        if feedback.sibling == EMPTY:
            remove(keys, feedback.key)
        else:
            put(keys, feedback.key, -2 - feedback.sibling)
            waiting[feedback.sibling].first = 1
        if not np.isnan(feedback.reward):
            size = _emit(state, out, event, size, feedback)
            row = out[0][size - 1]
            row.kind, row.reward, row.joined = feedback.kind, feedback.reward, False
        _release(state, feedback.history)
        feedback.key = EMPTY
    _free(waiting, meta, WAITERS, waiter)
    return size


@compiled_in_place
def first_unmet(waiting: Any, waiter: int) -> int:
    """The first from here on that still waits for its impression; EMPTY if none does."""
    while waiter != EMPTY and waiting[waiter].key == EMPTY:
        waiter = int(waiting[waiter].next)
    return waiter


@internal_in_place
def _crowd_out(state: Any) -> None:
    """Makes a place: first of what is only remembered, then of what has been open longest."""
    open_, queues, meta = state[2], state[7], state[8]
    chosen = queues.shape[0] - 2
    if queues[chosen, 0] == EMPTY:
        oldest = _NEVER
        for queue in range(queues.shape[0] - 2):
            first = queues[queue, 0]
            if first != EMPTY and open_[first].opened_us < oldest:
                oldest, chosen = open_[first].opened_us, queue
        meta[_CROWDED] += 1
    _forget(state, _pop(open_, queues, chosen))


@internal_in_place
def _forget(state: Any, slot: int) -> None:
    remove(state[0], state[2][slot].key)
    _release(state, state[2][slot].history)
    state[2][slot].key = EMPTY
    _free(state[2], state[8], SLOTS, slot)


# Histories: one for all impressions of a request


@internal_in_place
def _hold_request(state: Any, request: int, asked: Any, event: Any) -> int:
    requests, histories = state[1], state[4]
    place = get(requests, request)
    if place == EMPTY:
        place = _keep_history(state, request, asked, event)
        put(requests, request, place)
    else:
        histories[place].holders += 1
    return place


@internal_in_place
def _keep_history(state: Any, request: int, asked: Any, event: Any) -> int:
    """Holds what the user of an event did, searched for and passed over before it."""
    histories, kept, passed_over, meta = state[4], state[5], state[6], state[8]
    place = _allocate(histories, meta, HISTORIES)
    history = histories[place]
    history.request_id = request
    history.holders = 1
    history.actions = _newest(asked[0], event.history, kept[0].shape[1], kept[0][place])
    history.searches = _newest(asked[1], event.history, kept[1].shape[1], kept[1][place])
    history.passed_over = copy_of(passed_over, event.user_id, kept[2][place])
    return place


@internal_in_place
def _newest(lists: Any, number: int, most: int, to: Any) -> int:
    """Writes the newest of a list to `to`; returns how many that are."""
    offsets, records = lists
    end = offsets[number + 1]
    size = int(min(end - offsets[number], most))
    for i in range(size):
        to[i] = records[end - size + i]
    return size


@internal_in_place
def _release(state: Any, place: int) -> None:
    histories = state[4]
    histories[place].holders -= 1
    if histories[place].holders == 0:
        if histories[place].request_id != NONE:
            remove(state[1], histories[place].request_id)
        _free(histories, state[8], HISTORIES, place)


# Rows on their way out


@internal_in_place
def _emit_event(join: Any, i: int, size: int) -> int:
    """An action without an impression, with the history handed in beside it."""
    state, _, events, asked, out = join
    if np.isnan(events[i].reward):  # a label and no action: of use with its impression only
        return size
    rows, labels, histories = out
    row = rows[size]
    row.event, row.kind, row.reward, row.joined = i, events[i].kind, events[i].reward, False
    row.user_id, row.item_id, row.request_id = (
        events[i].user_id,
        events[i].item_id,
        events[i].request_id,
    )
    row.position, row.scenario, row.at_us = events[i].position, events[i].scenario, events[i].at_us
    row.version, row.score = events[i].version, events[i].score
    labels[size] = np.nan
    actions, searches, passed_over = histories
    number, kept = events[i].history, state[5]
    start = actions[0][size]
    count = _newest(asked[0], number, kept[0].shape[1], actions[1][start:])
    actions[0][size + 1] = start + count
    start = searches[0][size]
    count = _newest(asked[1], number, kept[1].shape[1], searches[1][start:])
    searches[0][size + 1] = start + count
    start = passed_over[0][size]
    count = copy_of(state[6], events[i].user_id, passed_over[1][start:])
    passed_over[0][size + 1] = start + count
    return size + 1


@internal_in_place
def _emit(state: Any, out: Any, event: int, size: int, held: Any) -> int:
    """A row of what was held, of the kind that a window's end has, with no label known."""
    rows, labels, histories = out
    row = rows[size]
    row.event, row.joined, row.kind, row.reward = event, True, EMPTY, np.nan
    row.user_id, row.item_id, row.request_id = held.user_id, held.item_id, held.request_id
    row.position, row.scenario, row.at_us = held.position, held.scenario, held.at_us
    row.version, row.score = held.version, held.score
    labels[size] = np.nan
    actions, searches, passed_over = histories
    kept, history = state[5], state[4][held.history]
    _append(actions, size, kept[0][held.history, : history.actions])
    _append(searches, size, kept[1][held.history, : history.searches])
    _append(passed_over, size, kept[2][held.history, : history.passed_over])
    return size + 1


@internal_in_place
def _append(lists: Any, number: int, records: Any) -> None:
    """Makes the records the list with this number, behind the one before."""
    offsets, out = lists
    start = offsets[number]
    for i in range(records.size):
        out[start + i] = records[i]
    offsets[number + 1] = start + records.size


# Pools and queues: chained through `next`


@internal_in_place
def _allocate(pool: Any, meta: Ids, of: int) -> int:
    place = int(meta[of])
    if place == EMPTY:
        place = int(meta[of + 1])
        meta[of + 1] += 1
    else:
        meta[of] = pool[place].next
    meta[of + 2] += 1
    return place


@internal_in_place
def _free(pool: Any, meta: Ids, of: int, place: int) -> None:
    pool[place].next = meta[of]
    meta[of] = place
    meta[of + 2] -= 1


@internal_in_place
def _push(pool: Any, queues: Any, queue: int, place: int) -> None:
    pool[place].next = EMPTY
    if queues[queue, 0] == EMPTY:
        queues[queue, 0] = place
    else:
        pool[queues[queue, 1]].next = place
    queues[queue, 1] = place


@internal_in_place
def _pop(pool: Any, queues: Any, queue: int) -> int:
    place = int(queues[queue, 0])
    queues[queue, 0] = pool[place].next
    return place


@internal_in_place
def _key(request: int, item: int) -> int:
    return int(mix(np.uint64(request) ^ mix(np.uint64(item))) >> np.uint64(1))


@compiled_in_place
def fill_maps(state: Any) -> None:
    """The maps are not saved: everything that is in them stands in the pools too."""
    keys, requests, open_, waiting, histories, meta = (
        state[0], state[1], state[2], state[3], state[4], state[8],
    )  # fmt: skip
    for slot in range(meta[SLOTS + 1]):
        if open_[slot].key != EMPTY:
            put(keys, open_[slot].key, slot)
    for waiter in range(meta[WAITERS + 1]):
        if waiting[waiter].key != EMPTY and waiting[waiter].first:
            put(keys, waiting[waiter].key, -2 - waiter)
    for place in range(meta[HISTORIES + 1]):
        if histories[place].holders > 0 and histories[place].request_id != NONE:
            put(requests, histories[place].request_id, place)
