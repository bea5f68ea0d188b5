"""The comparison in a few sentences and in four numbers. A ranking comes with the interval of its difference."""

from audiolm_jax.compare.report.differences import between, sign, signed
from audiolm_jax.compare.report.tables import percent


def verdict(results: dict) -> str:
    """Plain text: fewest bits and by how much, best understood, least work, and what the intervals cover."""
    sentences = [_bits(results), _understood(results), _work(results)]
    if all(len(entry["seeds"]) == 1 for entry in results["strategies"]):
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
    return text + _lead(results, first, others, "bits_per_second", "{:.1f}")


def _understood(results: dict) -> str:
    first, *others = sorted(results["strategies"], key=lambda s: s["cer"]["value"])
    cer = first["cer"]
    wrong = f"{percent(cer['value'])}\u00a0% of characters wrong ({percent(cer['low'])}–{percent(cer['high'])}"
    wrong += f"; real speech {percent(results['ceilings']['real']['cer']['value'])}\u00a0%)"
    if cer["value"] >= 0.5:
        return f"None can be understood yet, the closest is {first['name']} with {wrong}"
    return f"{first['name']} is understood best, {wrong}" + _lead(results, first, others, "cer", "{:.1f} points", 100)


def _lead(results: dict, first: dict, others: list[dict], metric: str, form: str, scale: float = 1) -> str:
    """By how much `first` leads the next entry of its size, with the interval of the difference."""
    rivals = [entry for entry in others if entry["size"] == first["size"]]
    if not rivals:
        return ""
    pair = between(results, first["name"], rivals[0]["name"], metric)
    low, high = -scale * pair["high"], -scale * pair["low"]
    by = form.format(-scale * pair["difference"])
    name = rivals[0]["name"]
    if pair["low"] <= 0 <= pair["high"]:
        return f", within the noise of {name} ({by}, {signed(low)} to {signed(high)})"
    caveat = "" if sign(pair) else "; the number of one that is a bound may be smaller in truth"
    return f", ahead of {name} by {by} ({signed(low)} to {signed(high)}{caveat})"


def _work(results: dict) -> str:
    fastest = min(results["strategies"], key=lambda s: s["speed"]["rtf"])
    name, factor = fastest["name"], fastest["speed"]["rtf"]
    factors = [seed["speed"]["rtf"] for seed in fastest["seeds"]]
    seeds = f" ({min(factors):.2f}–{max(factors):.2f} over seeds)" if len(factors) > 1 else " (one measurement)"
    return f"The least work was measured for {name}, {factor:.2f} s for a second of audio{seeds}"


def facts(results: dict) -> list[tuple[str, str]]:
    """(number, meaning) of the four cards below the verdict."""
    strategies = results["strategies"]
    bits = min(strategies, key=lambda s: s["bits_per_second"])
    clearest = min(strategies, key=lambda s: s["cer"]["value"])
    fastest = min(strategies, key=lambda s: s["speed"]["rtf"])
    soonest = min(strategies, key=lambda s: s["speed"]["first_audio_seconds"])
    unigram = results["baselines"]["unigram_bits_per_second"]
    codec = results["ceilings"]["codec"]["cer"]["value"]
    milliseconds = 1000 * soonest["speed"]["first_audio_seconds"]
    return [
        (f"{bits['bits_per_second']:.0f} bits/s", f"{bits['name']}: fewest bits; unigram {unigram:.0f}"),
        (f"{percent(clearest['cer']['value'])} % CER", f"{clearest['name']}: fewest errors; codec {percent(codec)} %"),
        (f"{fastest['speed']['rtf']:.2f} × real time", f"{fastest['name']}: least work; below 1 keeps up with playing"),
        (f"{milliseconds:.0f} ms to audio", f"{soonest['name']}: first sound soonest"),
    ]
