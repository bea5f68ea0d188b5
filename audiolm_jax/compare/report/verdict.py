"""The comparison in a sentence and in four numbers. What ranks strategies carries its interval."""

from audiolm_jax.compare.report.differences import between, sign, signed
from audiolm_jax.compare.report.tables import percent


def verdict(results: dict) -> str:
    """Plain text: fewest bits and by how much, best understood, least work, and what the intervals cover."""
    sentences = [_bits(results), _understood(results), _work(results)]
    if all(len(one["seeds"]) == 1 for one in results["strategies"]):
        sentences.append("One seed each: the intervals are over utterances alone, and say nothing about other runs")
    return ". ".join(sentences) + "."


def _bits(results: dict) -> str:
    first, *others = sorted(results["strategies"], key=lambda s: s["bits_per_second"])
    unigram = results["baselines"]["unigram_bits_per_second"]
    share = 100 * (1 - first["bits_per_second"] / unigram)
    interval = f"{first['bits_per_second_low']:.0f}–{first['bits_per_second_high']:.0f}"
    kind = "a bound, " if first["likelihood"] == "bound" else ""
    text = (
        f"{first['name']} needs the fewest bits: {first['bits_per_second']:.0f} per second of audio "
        f"({kind}{interval}), {abs(share):.0f}\u00a0% {'below' if share >= 0 else 'above'} the unigram baseline"
    )
    return text + _ahead(results, first, others, "bits_per_second", "{:.1f}")


def _understood(results: dict) -> str:
    first, *others = sorted(results["strategies"], key=lambda s: s["cer"]["value"])
    cer = first["cer"]
    wrong = f"{percent(cer['value'])}\u00a0% of characters wrong ({percent(cer['low'])}–{percent(cer['high'])}"
    wrong += f"; real speech {percent(results['ceilings']['real']['cer']['value'])}\u00a0%)"
    if cer["value"] >= 0.5:
        return f"None can be understood yet, the closest is {first['name']} with {wrong}"
    return f"{first['name']} is understood best, {wrong}" + _ahead(results, first, others, "cer", "{:.1f} points", 100)


def _ahead(results: dict, first: dict, others: list[dict], metric: str, form: str, scale: float = 1) -> str:
    """How far the first is ahead of the next one of its size, with the interval of the difference."""
    beside = [one for one in others if one["size"] == first["size"]]
    if not beside:
        return ""
    pair = between(results, first["name"], beside[0]["name"], metric)
    low, high = -scale * pair["high"], -scale * pair["low"]
    by = form.format(-scale * pair["difference"])
    name = beside[0]["name"]
    if pair["low"] <= 0 <= pair["high"]:
        return f", within the noise of {name} ({by}, {signed(low)} to {signed(high)})"
    unsure = "" if sign(pair) else "; the number of one that is a bound may be smaller in truth"
    return f", ahead of {name} by {by} ({signed(low)} to {signed(high)}{unsure})"


def _work(results: dict) -> str:
    fast = min(results["strategies"], key=lambda s: s["speed"]["rtf"])
    over = [seed["speed"]["rtf"] for seed in fast["seeds"]]
    seeds = f" ({min(over):.2f}–{max(over):.2f} over seeds)" if len(over) > 1 else " (one measurement)"
    return f"The least work was measured for {fast['name']}, {fast['speed']['rtf']:.2f} s for a second of audio{seeds}"


def facts(results: dict) -> list[tuple[str, str]]:
    """The four numbers to take home, and what they mean."""
    strategies = results["strategies"]
    bits = min(strategies, key=lambda s: s["bits_per_second"])
    heard = min(strategies, key=lambda s: s["cer"]["value"])
    fast = min(strategies, key=lambda s: s["speed"]["rtf"])
    soon = min(strategies, key=lambda s: s["speed"]["first_audio_seconds"])
    unigram = results["baselines"]["unigram_bits_per_second"]
    codec = results["ceilings"]["codec"]["cer"]["value"]
    return [
        (f"{bits['bits_per_second']:.0f} bits/s", f"{bits['name']}: fewest bits; unigram {unigram:.0f}"),
        (f"{percent(heard['cer']['value'])} % CER", f"{heard['name']}: fewest errors; codec {percent(codec)} %"),
        (f"{fast['speed']['rtf']:.2f} × real time", f"{fast['name']}: least work; below 1 keeps up with playing"),
        (f"{1000 * soon['speed']['first_audio_seconds']:.0f} ms to audio", f"{soon['name']}: first sound soonest"),
    ]
