"""The comparison in a few sentences and in four numbers. A ranking comes with the interval of its difference."""

from audiolm_jax.compare.report.differences import between, interval, sign
from audiolm_jax.compare.report.schema import meaningless
from audiolm_jax.compare.report.tables import lacking, percent, signed
from audiolm_jax.evaluation.intervals import SEEDS


def verdict(results: dict) -> str:
    """Plain text: fewest bits and by how much, best understood, least work, and what the intervals cover.

    With fewer than `intervals.SEEDS` seeds the numbers are those of the runs, and no strategy is said to be ahead.
    """
    sentences = [_bits(results), _worse(results), _understood(results), _work(results), _covered(results)]
    return ". ".join(sentence for sentence in sentences if sentence) + "."


def _few_seeds(results: dict) -> bool:
    return any(len(entry["seeds"]) < SEEDS for entry in results["strategies"])


def _covered(results: dict) -> str:
    if any(entry["bits_per_second_low"] is None for entry in results["strategies"]):
        reason = lacking(results, results["strategies"][0], "bits_per_second")
        return f"With {reason} there is no interval and no verdict on the strategies"
    if _few_seeds(results):
        return (
            "One seed each, so this is no verdict on the strategies: intervals are over utterances alone, and other "
            f"runs may differ; {SEEDS} seeds would tell"
        )
    return ""


def _bits(results: dict) -> str:
    first, *others = sorted(results["strategies"], key=lambda s: s["bits_per_second"])
    unigram = results["baselines"]["unigram_bits_per_second"]
    share = 100 * (1 - first["bits_per_second"] / unigram)
    kind = "a bound, " if first["likelihood"] == "bound" else ""
    if first["bits_per_second_low"] is None:
        ends = f"no interval: {lacking(results, first, 'bits_per_second')}"
    else:
        ends = f"{first['bits_per_second_low']:.0f}–{first['bits_per_second_high']:.0f}"
    where = " in these runs" * _few_seeds(results)
    text = (
        f"{first['name']} needs the fewest bits{where}: {first['bits_per_second']:.0f} "
        f"per second of audio ({kind}{ends}), {abs(share):.0f}\u00a0% {'below' if share >= 0 else 'above'} the unigram "
        "baseline"
    )
    return text + _lead(results, first, others, "bits_per_second")


def _worse(results: dict) -> str:
    """The strategies that need more bits than codes of which nothing, or only their frequency, is known."""
    base, strategies = results["baselines"], results["strategies"]
    split = (results["config"] or {}).get("evaluation", {}).get("split", "test")
    own = {entry["name"]: entry["bits_per_second"] for entry in strategies}
    rows = [(split, own, base["unigram_bits_per_second"])]
    unigrams = base.get("also_unigram_bits_per_second", {})
    for also in strategies[0]["also"]:
        found = {entry["name"]: entry["also"][also]["bits_per_second"] for entry in strategies}
        rows.append((also, found, unigrams.get(also, float("inf"))))
    parts = []
    for where, found, unigram in rows:
        least, kind = min((unigram, "unigram"), (base["uniform_bits_per_second"], "uniform"))
        names = [
            f"the bound of {entry['name']}" if entry["likelihood"] == "bound" else entry["name"]
            for entry in strategies
            if found[entry["name"]] > least
        ]
        if names:
            *more, last = names
            listed = f"{', '.join(more)} and {last}" if more else last
            who = "all of them" if len(names) == len(found) > 1 else listed
            parts.append(f"{who} on {where}, where {kind} codes need {least:.0f}")
    return f"Worse than knowing nothing: {'; '.join(parts)}" if parts else ""


def _understood(results: dict) -> str:
    if no_judge := meaningless(results):
        return f"Intelligibility is not compared: {no_judge}"
    first, *others = sorted(results["strategies"], key=lambda s: s["cer"]["value"])
    cer = first["cer"]
    ends = f"{percent(cer['low'])}–{percent(cer['high'])}" if cer["low"] is not None else "no interval"
    wrong = f"{percent(cer['value'])}\u00a0% of characters wrong ({ends}"
    wrong += f"; real speech {percent(results['ceilings']['real']['cer']['value'])}\u00a0%)"
    if cer["value"] >= 0.5:
        return f"None can be understood yet, the closest is {first['name']} with {wrong}"
    return f"{first['name']} is understood best, {wrong}" + _lead(results, first, others, "cer", " points", 100)


def _lead(results: dict, first: dict, others: list[dict], metric: str, unit: str = "", scale: float = 1) -> str:
    """By how much `first` leads the next entry of its size, with the interval of the difference."""
    rivals = [entry for entry in others if entry["size"] == first["size"]]
    if not rivals:
        return ""
    name = rivals[0]["name"]
    pair = between(results, name, first["name"], metric)
    by, ends = signed(scale * pair["difference"]) + unit, interval(results, pair, scale)
    if pair["low"] is None:
        return f", {by} fewer than {name}"
    if pair["low"] <= 0 <= pair["high"]:
        return f", within the noise of {name} ({by}, {ends})"
    if _few_seeds(results):
        return f", {by} fewer than {name} ({ends}, over utterances)"
    caveat = "" if sign(pair) else "; the number of one that is a bound may be smaller in truth"
    return f", ahead of {name} by {by} ({ends}{caveat})"


def _work(results: dict) -> str:
    fastest = min(results["strategies"], key=lambda s: s["speed"]["rtf"])
    name, factor = fastest["name"], fastest["speed"]["rtf"]
    factors = [seed["speed"]["rtf"] for seed in fastest["seeds"]]
    seeds = f" ({_short(min(factors))}–{_short(max(factors))} over seeds)" if len(factors) > 1 else " (one measurement)"
    return f"The least work was measured for {name}, {_short(factor)} s for a second of audio{seeds}"


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def facts(results: dict) -> list[tuple[str, str]]:
    """(number, meaning) of the cards below the verdict."""
    strategies = results["strategies"]
    bits = min(strategies, key=lambda s: s["bits_per_second"])
    clearest = min(strategies, key=lambda s: s["cer"]["value"])
    fastest = min(strategies, key=lambda s: s["speed"]["rtf"])
    soonest = min(strategies, key=lambda s: s["speed"]["first_audio_seconds"])
    unigram = results["baselines"]["unigram_bits_per_second"]
    real, codec = (percent(results["ceilings"][name]["cer"]["value"]) for name in ("real", "codec"))
    milliseconds = 1000 * soonest["speed"]["first_audio_seconds"]
    errors = f"{clearest['name']}: fewest errors; recordings {real} %, codec {codec} %"
    cards = [
        (f"{bits['bits_per_second']:.0f} bits/s", f"{bits['name']}: fewest bits; unigram {unigram:.0f}"),
        (f"{percent(clearest['cer']['value'])} % CER", errors),
        (
            f"{_short(fastest['speed']['rtf'])} × real time",
            f"{fastest['name']}: least work; below 1 keeps up with playing",
        ),
        (f"{milliseconds:.0f} ms to audio", f"{soonest['name']}: first sound soonest"),
    ]
    return cards[:1] + cards[2:] if meaningless(results) else cards
