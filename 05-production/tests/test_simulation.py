"""Whole runs of a team, each drawn from a seed, and what must hold after each.

    pytest 05-production/tests/test_simulation.py --long               # 2,000, not 300
    pytest 05-production/tests/test_simulation.py --simulations=50000
    pytest 05-production/tests/test_simulation.py --seed=2000          # other runs

A run that fails prints the command that repeats it and shows its log.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from simulation import (
    EPS,
    FAULTS,
    FINAL,
    SOURCES,
    STOPS,
    Moment,
    SimulatedRun,
    play,
    text_of,
)

from agents import FailureKind, Outcome

AGAIN = "pytest 05-production/tests/test_simulation.py --simulations=1 --seed="
BAD = {  # what a question may end as, after this from the server
    "reset": {FailureKind.UNREACHABLE},
    "unreadable": {FailureKind.INVALID},
    "crash": {FailureKind.CRASHED},
    "left": {FailureKind.TIMED_OUT},
}
Check = Callable[[SimulatedRun], Iterator[str]]


def asked(ran: SimulatedRun) -> Iterator[tuple[str, list[Outcome]]]:
    """Each question to the model with all of its outcomes, if all are known."""
    found, missing = dict[str, list[Outcome]](), Counter[str]()
    for part in ran.parts:
        for outcome in part.outcomes if not part.is_agents else ():
            found.setdefault(outcome.question, []).append(outcome)
        if not part.is_finished:
            missing += Counter(part.pulled) - Counter(o.question for o in part.outcomes)
    yield from ((q, outcomes) for q, outcomes in found.items() if q not in missing)


def first_life(ran: SimulatedRun) -> list[Moment]:
    """Without the second team."""
    return ran.log[: ran.resumed_after or None]


def is_result(moment: Moment) -> bool:
    """The end of a request, seen from the server."""
    return moment.what in ("delivered", *BAD) or moment.what.startswith(
        ("4", "5", "quota")
    )


# Nothing is lost


def each_question_ends_once(ran: SimulatedRun) -> Iterator[str]:
    for part in [*ran.parts, *filter(None, [ran.resumed])]:
        ended, pulled = [o.question for o in part.outcomes], Counter(part.pulled)
        if Counter(ended) - pulled:
            yield f"more than once: {Counter(ended) - pulled}"
        if part.is_finished and pulled - Counter(ended):
            yield f"lost: {pulled - Counter(ended)}"
        if part.in_order and ended != part.pulled[: len(ended)]:
            yield f"not in order: {ended}"


def all_are_pulled(ran: SimulatedRun) -> Iterator[str]:
    may_stop = ran.plan.stop or ran.plan.source == "async hangs"
    is_cut = may_stop and "async" in ran.plan.source
    for part in ran.parts:
        if part.is_finished and part.pulled != part.questions and not is_cut:
            yield f"asked only {part.pulled} of {part.questions}"


def an_outcome_is_an_answer_or_a_failure(ran: SimulatedRun) -> Iterator[str]:
    for part in ran.parts:
        for o in part.outcomes:
            if (o.answer is None) == (o.failure is None):
                yield f"neither or both: {o}"
            if o.answer and not part.is_agents and o.text != text_of(o.question):
                yield f"the answer to another question: {o}"


def what_was_answered_is_kept(ran: SimulatedRun) -> Iterator[str]:
    log = first_life(ran)
    last = {m.question: m.at for m in log if m.what == "delivered"}
    for question, outcomes in asked(ran):
        is_late = abs(last.get(question, 0) - ran.over) <= EPS  # at the last moment
        if question in last and not any(o.answer for o in outcomes) and not is_late:
            yield f"{question} was answered, and it ends as {outcomes}"


def the_counts_are_those_of_the_server(ran: SimulatedRun) -> Iterator[str]:
    log = first_life(ran)
    arrived = Counter(m.question for m in log if m.what == "arrived")
    delivered = Counter(m.question for m in log if m.what == "delivered")
    for question, outcomes in asked(ran):
        sent = sum(o.requests for o in outcomes)
        tokens = sum(o.tokens for o in outcomes)
        used = ran.plan.tokens(question) * delivered[question] * ran.plan.usage
        if (sent, tokens) != (arrived[question], used):
            yield f"{question}: {sent} requests, {tokens} tokens, says the outcome"
        seconds = sum(o.in_flight for o in outcomes)
        if ran.resumed is None and abs(seconds - ran.server.seconds[question]) > EPS:
            yield f"{question}: {seconds} s in flight, says the outcome"


def the_journal_has_all_that_was_answered(ran: SimulatedRun) -> Iterator[str]:
    if ran.resumed is None:
        return
    before = {m.question for m in first_life(ran) if m.what == "delivered"}
    for m in ran.log[ran.resumed_after :]:
        if m.what == "arrived" and m.question in before:
            yield f"{m.question} is asked again after a restart"
    yield from (f"not answered: {o}" for o in ran.resumed.outcomes if not o.answer)


# Nothing is done twice without need


def nothing_is_asked_again_after_its_answer(ran: SimulatedRun) -> Iterator[str]:
    done = dict[str, float]()
    hedged = 0 if ran.plan.limits.hedge else EPS  # a hedge may leave at this moment
    for m in ran.log:
        if m.what == "delivered":
            done[m.question] = m.at
        elif m.what == "arrived" and m.at > done.get(m.question, math.inf) - hedged:
            yield f"{m.question} is asked again at {m.at}"


def what_cannot_pass_is_not_asked_again(ran: SimulatedRun) -> Iterator[str]:
    if ran.plan.limits.hedge is not None or ran.plan.journal:
        return  # there, one question may mean several requests
    done = set[str]()
    for m in first_life(ran):
        if m.what.startswith(FINAL):
            done.add(m.question)
        elif m.what == "arrived" and m.question in done:
            yield f"{m.question} is asked again at {m.at}"


def the_budget_of_retries_is_kept(ran: SimulatedRun) -> Iterator[str]:
    limits, log = ran.plan.limits, first_life(ran)
    counts = Counter(m.what for m in log)
    allowed = limits.free_retries + limits.retry_share * counts["queued"]
    if counts["retried"] > allowed + EPS:
        yield f"{counts['retried']} retries of {allowed}"
    for question, outcomes in asked(ran):
        most = limits.tries * len(outcomes) * (1 if limits.hedge is None else 2)
        waits = sum(
            m.what.startswith("429 wait") for m in log if m.question == question
        )
        sent = sum(o.requests for o in outcomes)
        if sent > most + waits:
            yield f"{question} is sent {sent} times: {limits.tries} tries"


def who_gives_up_has_a_reason(ran: SimulatedRun) -> Iterator[str]:
    limits, log = ran.plan.limits, first_life(ran)
    results = dict[str, list[str]]()
    queued = retried = 0
    poor = set[str]()  # failed when the budget was empty
    for m in log:
        queued += m.what == "queued"
        if m.what == "failed" and m.question not in results:
            queued -= 1  # too large: has earned nothing
        retried += m.what == "retried"
        if is_result(m):
            results.setdefault(m.question, []).append(m.what)
        left = limits.free_retries + limits.retry_share * queued - retried
        if m.what == "failed" and left < 1 + EPS:
            poor.add(m.question)
    for question, outcomes in asked(ran):
        if ran.plan.journal or (failure := outcomes[0].failure) is None:
            continue  # with a journal, who waits for another's answer earns nothing
        seen = results.get(question, [])
        why = {k for what in seen for k in BAD.get(what, {FailureKind.REFUSED})}
        if failure.kind in (FailureKind.CANCELLED, FailureKind.DEADLINE):
            continue
        if not seen:
            if (
                "never fits" not in failure.message
                and "ever lets" not in failure.message
            ):
                yield f"{question} is not asked at all: {failure}"
        elif failure.kind not in why:
            yield f"{question} ends as {failure} after {seen}"
        elif seen[-1].startswith(FINAL) or limits.hedge is not None:
            continue
        elif question not in poor:
            is_pause = [what.startswith("429 wait") for what in seen]
            tries = len(seen) - sum(is_pause)
            if tries < limits.tries and sum(is_pause) <= limits.refusals:
                yield f"{question} is given up after {seen}: {failure}"


# No more in flight, and no faster, than allowed


def no_more_are_in_flight_than_allowed(ran: SimulatedRun) -> Iterator[str]:
    in_flight = 0
    for m in first_life(ran):
        in_flight += (m.what == "arrived") - is_result(m)
        if in_flight > ran.plan.limits.concurrency:
            yield f"{in_flight} at the same time, at {m.at}"


def nothing_is_refused_for_its_rate(ran: SimulatedRun) -> Iterator[str]:
    if ran.plan.knows_limits and ran.server.over_limit:
        yield f"{ran.server.over_limit} requests over the limit"


def nobody_sends_while_the_server_says_wait(ran: SimulatedRun) -> Iterator[str]:
    until = 0.0
    for m in first_life(ran):
        if m.what == "arrived" and m.at < until - EPS:
            yield f"{m.question} is sent at {m.at}, not after {until}"
        if m.what.startswith("429 wait"):
            until = max(until, m.at + float(m.what.split()[-1]))


def a_retry_waits_as_long_as_it_says(ran: SimulatedRun) -> Iterator[str]:
    limits, until, said = ran.plan.limits, dict[str, float](), dict[str, float]()
    if limits.hedge is not None or ran.plan.journal:
        return  # there, one question may mean several requests
    for m in first_life(ran):
        if is_result(m):
            said[m.question] = float(m.what.partition(" wait ")[2] or 0)
        if m.what.startswith(("503 wait", "retried")):
            is_ours = m.what == "retried"
            wait = m.detail.wait if is_ours else said[m.question]
            if is_ours and wait > max(limits.longest_backoff, said[m.question]) + EPS:
                yield f"{m.question} waits for {wait} s"
            until[m.question] = max(m.at + wait, until.get(m.question, 0))
        elif m.what == "arrived" and m.at < until.get(m.question, 0) - EPS:
            yield f"{m.question} is sent again at {m.at}"


def nobody_waits_while_there_is_room(ran: SimulatedRun) -> Iterator[str]:
    """A slot is free, the server would take it, and somebody wants to send.

    As long may be lost as the tenth of a burst takes that is held back, for who was
    off while it paid, too; and who pays in parts looks ten times a second.
    """
    plan, concurrency = ran.plan, ran.plan.limits.concurrency
    if not plan.knows_all or plan.journal:  # who asks the same waits for its answer
        return
    limits = [(plan.request_burst, plan.rpm), (plan.token_burst, plan.tpm)]
    patience = sum(0.1 + burst / 5 * 60 / rate for burst, rate in limits if rate) + EPS
    gives_back = any(kind.startswith(("4", "quota")) for kind, _ in plan.faults)
    if plan.tpm and (gives_back or plan.estimate == "over"):
        patience += plan.sizes[1] * 60 / plan.tpm
    wanted = dict[str, float]()  # question -> when it may be sent
    since = math.inf  # there is room, and nobody sends
    for m in first_life(ran):
        if m.what in ("exit", "stop") or m.at >= ran.over - EPS:
            return
        if m.what in ("queued", "retried"):
            wanted[m.question] = m.at + (m.detail.wait if m.what == "retried" else 0)
        elif m.what in ("arrived", "answered", "failed"):
            wanted.pop(m.question, None)
        elif m.what == "idle":
            in_flight, requests, tokens = m.detail
            ready = [q for q, at in wanted.items() if at < m.at]
            need = max(map(plan.tokens, ready), default=0)
            rooms = (requests, plan.request_burst, 1), (tokens, plan.token_burst, need)
            has_room = all(
                level is None or level > min(amount + burst / 5, burst - 1e-3)
                for level, burst, amount in rooms
            )
            has_room = has_room and bool(ready) and in_flight < concurrency
            since = min(since, m.at) if has_room else math.inf
            if m.at - since > patience:
                yield f"at {m.at}, {ready} could be sent since {since}: {m.detail}"


def slots_are_used_while_there_are_questions(ran: SimulatedRun) -> Iterator[str]:
    plan, concurrency = ran.plan, ran.plan.limits.concurrency
    is_plain = plan.consumers == 1 and not (plan.levels or plan.by_ask or plan.slow)
    if not is_plain or plan.in_order or plan.journal or "async" in plan.source:
        return
    pulled, begun, wanted = 0, 0, dict[str, float]()  # question -> when it wants a slot
    for m in first_life(ran):
        pulled += m.what == "pulled"
        begun += (m.what == "queued") - (m.what in ("answered", "failed"))
        if m.what in ("queued", "refused", "retried"):
            wanted[m.question] = m.at + (m.detail.wait if m.what == "retried" else 0)
        elif m.what in ("arrived", "answered", "failed"):
            wanted.pop(m.question, None)
        elif m.what in ("exit", "stop") or m.at >= ran.over - EPS:
            return
        elif m.what == "idle" and pulled < len(plan.questions):
            busy = m.detail[0] + sum(since <= m.at for since in wanted.values())
            if busy < concurrency and begun < 2 * concurrency:
                yield f"at {m.at}, {pulled} questions are pulled, and {begun} begun"


def a_question_is_begun_when_a_slot_is_free(ran: SimulatedRun) -> Iterator[str]:
    plan, in_flight, in_line = ran.plan, 0, set[str]()
    is_plain = plan.consumers == 1 and not (plan.levels or plan.by_ask or plan.journal)
    if not is_plain or "async" in plan.source or plan.in_order:
        return  # there, the slot may be gone when there is a question, or its turn
    for m in first_life(ran):
        if m.what in ("exit", "stop") or m.at >= ran.over - EPS:
            return
        if m.what in ("queued", "refused"):
            in_line.add(m.question)
            is_over = in_flight + len(in_line) > plan.limits.concurrency
            if m.what == "queued" and is_over:
                yield f"{m.question} is begun at {m.at}, and {in_flight} in flight"
        elif m.what in ("arrived", "retried", "failed"):
            in_line.discard(m.question)
        in_flight += (m.what == "arrived") - is_result(m)


# First come, first served


def the_first_in_line_is_sent_first(ran: SimulatedRun) -> Iterator[str]:
    log = first_life(ran)
    if ran.plan.journal:
        return
    queued = [m.question for m in log if m.what == "queued"]
    place = {question: place for place, question in enumerate(queued)}
    last = -1
    seen = set[str]()
    for m in log:
        if m.what == "arrived" and m.question not in seen:
            seen.add(m.question)
            if place[m.question] < last:
                yield f"{m.question} is overtaken by {queued[last]}"
            last = max(last, place[m.question])


def who_was_refused_goes_first(ran: SimulatedRun) -> Iterator[str]:
    if ran.plan.limits.hedge is not None or ran.plan.journal:
        return
    waiting, seen = set[str](), set[str]()
    for m in ran.log:
        if m.what == "refused":
            waiting.add(m.question)
        elif m.what in ("failed", "retried"):
            waiting.discard(m.question)
        elif m.what == "arrived":
            waiting.discard(m.question)
            if waiting and m.question not in seen:
                yield f"{m.question} is sent before {waiting}, at {m.at}"
            seen.add(m.question)


# In time, and nothing is left


def the_end_is_kept(ran: SimulatedRun) -> Iterator[str]:
    for m in first_life(ran):
        if (m.what == "arrived" or is_result(m)) and m.at > ran.over + EPS:
            yield f"{m.what} {m.question} at {m.at}: over at {ran.over}"
    if ran.ended > ran.exit_began + EPS:
        yield f"the way out takes {ran.ended - ran.exit_began} s"
    for part in ran.parts:
        if not ran.plan.slow and ran.over + EPS < part.ended < math.inf:
            yield f"a run ends at {part.ended}: over at {ran.over}"


def who_is_stopped_says_why(ran: SimulatedRun) -> Iterator[str]:
    stops = [m.at for m in first_life(ran) if m.what in ("stop", "exit")]
    for m in first_life(ran):
        how = m.detail[0] if m.what == "got" else ""
        if how == FailureKind.CANCELLED and m.at < min(stops):
            yield f"{m.question} is cancelled at {m.at}"
        elif how == FailureKind.DEADLINE and m.at < ran.plan.limits.deadline - EPS:
            yield f"{m.question} is at its deadline at {m.at}"


def a_drained_team_begins_nothing_new(ran: SimulatedRun) -> Iterator[str]:
    stops = [m.at for m in first_life(ran) if m.what == "stop"]
    if not ran.plan.stop.startswith("drain") or not stops or ran.plan.levels:
        return
    for m in first_life(ran):
        if m.what == "queued" and m.at > stops[0] + EPS and not ran.plan.by_ask:
            yield f"{m.question} is begun at {m.at}"


def nothing_is_left(ran: SimulatedRun) -> Iterator[str]:
    yield from ran.left
    if ran.server.in_flight:
        yield f"{ran.server.in_flight} in flight"


def nobody_complains(ran: SimulatedRun) -> Iterator[str]:
    yield from (m.detail for m in ran.log if m.what == "complained")
    for part in ran.parts:
        expected: list[type[BaseException]] = []
        if ran.plan.source == "raises":
            expected.append(LookupError)
        if ran.plan.stop == "exit":  # the team has gone, and the consumer goes on
            expected.append(RuntimeError)
        if part.error is not None and not isinstance(part.error, tuple(expected)):
            yield f"raises {part.error!r}"


# Nobody begins more than is wanted


def no_more_is_pulled_than_is_wanted(ran: SimulatedRun) -> Iterator[str]:
    if ran.plan.levels or ran.plan.by_ask:
        return
    counts = Counter[str]()
    for m in first_life(ran):
        counts[m.what] += 1
        ahead = counts["pulled"] - counts["got"]
        if ahead > ran.plan.consumers * (4 * ran.plan.limits.concurrency + 2):
            yield f"{ahead} are pulled and not taken"


def an_agent_that_has_ended_asks_no_more(ran: SimulatedRun) -> Iterator[str]:
    agents = {o.question for p in ran.parts if p.is_agents for o in p.outcomes}
    ended = set[str]()
    for m in ran.log if ran.plan.levels else ():
        if m.what == "got" and m.question in agents:
            ended.add(m.question)
        elif m.what == "arrived":
            *names, _ = m.question.split(".")
            above = {".".join(names[:n]) for n in range(1, len(names) + 1)}
            if above & ended:
                yield f"{m.question} is sent at {m.at}"


# The observer


def the_observer_sees_what_happens(ran: SimulatedRun) -> Iterator[str]:
    s, counts = ran.summary, Counter(m.what for m in ran.log)
    if s["sent"] != counts["arrived"]:
        yield f"{s['sent']} sent, {counts['arrived']} arrived"
    if s.open:
        yield f"{s.open} questions are open"
    if s["refused"] != s["paused"]:
        yield f"{s['refused']} refused, {s['paused']} pauses"
    if sum(s.failures.values()) > s["failed"]:  # less: those without an outcome
        yield f"{s.failures} of {s['failed']}"


CHECKS: list[Check] = [
    each_question_ends_once,
    all_are_pulled,
    an_outcome_is_an_answer_or_a_failure,
    what_was_answered_is_kept,
    the_counts_are_those_of_the_server,
    the_journal_has_all_that_was_answered,
    nothing_is_asked_again_after_its_answer,
    what_cannot_pass_is_not_asked_again,
    the_budget_of_retries_is_kept,
    who_gives_up_has_a_reason,
    no_more_are_in_flight_than_allowed,
    nothing_is_refused_for_its_rate,
    nobody_sends_while_the_server_says_wait,
    a_retry_waits_as_long_as_it_says,
    nobody_waits_while_there_is_room,
    slots_are_used_while_there_are_questions,
    a_question_is_begun_when_a_slot_is_free,
    the_first_in_line_is_sent_first,
    who_was_refused_goes_first,
    the_end_is_kept,
    who_is_stopped_says_why,
    a_drained_team_begins_nothing_new,
    nothing_is_left,
    nobody_complains,
    no_more_is_pulled_than_is_wanted,
    an_agent_that_has_ended_asks_no_more,
    the_observer_sees_what_happens,
]


def wrong(seed: int) -> list[str]:
    """What does not hold in the run of this seed."""
    try:
        ran = play(seed)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    found = ((check.__name__, next(check(ran), "")) for check in CHECKS)
    return [f"{name}: not so: {says}" for name, says in found if says]


def test_every_promise_holds_in_each_run(seeds: range, is_one: bool) -> None:
    for seed in seeds:
        if says := wrong(seed):
            if is_one:
                print(play(seed))
            pytest.fail("\n".join([*says, f"{AGAIN}{seed}"]), pytrace=False)


def test_the_same_seed_gives_the_same_run() -> None:
    """But for the order of cancellations by a TaskGroup: it keeps a set of tasks."""
    for seed in range(50):
        before, after = (
            sorted((*moment[:3], str(moment.detail)) for moment in play(seed).log)
            for _ in range(2)
        )
        assert before == after, seed


def test_the_runs_go_everywhere() -> None:
    """What the checks are about has to happen, and often."""
    seen, ends = Counter[str](), Counter[str]()
    for seed in range(200):
        ran = play(seed)
        whats = [m.what.partition(" wait ")[0] for m in ran.log]
        ends.update(o.failure.kind for p in ran.parts for o in p.outcomes if o.failure)
        seen.update(whats)
        seen[f"stop: {ran.plan.stop}"] += 1
        seen[f"source: {ran.plan.source}"] += 1
        seen["agents"] += ran.plan.levels > 0
        seen["agents of agents"] += ran.plan.levels > 1
        seen["resumed"] += ran.resumed is not None
        seen["hedged"] += is_hedged(ran)
        seen["over the limit"] += ran.server.over_limit
        seen["knows limits"] += ran.plan.knows_limits and "idle" in whats
        seen["knows all"] += ran.plan.knows_all and "idle" in whats
    faults = {kind.partition(" ")[0] for kind in FAULTS} - {"hang"}
    stops, sources = map("stop: {}".format, STOPS), map("source: {}".format, SOURCES)
    wanted = [*faults, *stops, *sources, "left", "retried", "agents", "resumed"]
    wanted += ["agents of agents", "hedged", "over the limit", "knows limits"]
    assert {what: seen[what] for what in [*wanted, "knows all"] if seen[what] < 3} == {}
    assert set(ends) == set(FailureKind)


def is_hedged(ran: SimulatedRun) -> bool:
    """Whether two requests of one question were in flight at the same time."""
    in_flight = Counter[str]()
    for m in first_life(ran):
        in_flight[m.question] += (m.what == "arrived") - is_result(m)
        if in_flight[m.question] > 1 and not ran.plan.journal:
            return True
    return False
