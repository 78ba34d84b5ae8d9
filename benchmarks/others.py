"""The same load on something else, in turns: nusku on SQLite, and a Zaqar that runs."""

from benchmarks import asking
from benchmarks.loads import ONE_AT_A_TIME
from benchmarks.report import CYCLE1_ZAQAR, POST1_SQLITE, POST1_ZAQAR, Result
from benchmarks.rig import Rig
from benchmarks.turns import Side, against, in_turns


async def sqlite(rig: Rig) -> Result:
    """nusku on this store, and nusku on SQLite."""
    if rig.store is None or not rig.stores.shared:
        return Result("sqlite", skipped="needs a server of ours on another store than SQLite")
    result = Result("sqlite")
    store = await rig.stores.new("sqlite")
    result.modes["sqlite"] = await asking.mode_of(store.uri, store.settings)
    async with rig.another(store) as other:
        ratios = await _against(rig, "here", other, "sqlite", result)
    result.ratios = {POST1_SQLITE: ratios["post1"], "cycle1 against SQLite": ratios["cycle1"]}
    return result


async def zaqar(rig: Rig) -> Result:
    """This server, and a Zaqar; on the same store where that is how they were started."""
    if rig.zaqar is None:
        return Result("zaqar", skipped="no Zaqar was named: --zaqar http://HOST:PORT")
    result = Result("zaqar")
    async with rig.another(url=rig.zaqar) as other:
        ratios = await _against(rig, "nusku", other, "zaqar", result)
    result.ratios = {POST1_ZAQAR: ratios["post1"], CYCLE1_ZAQAR: ratios["cycle1"]}
    return result


async def _against(
    rig: Rig, name: str, other: Rig, other_name: str, result: Result
) -> dict[str, list[float]]:
    """Both loads on both; the ratios of each."""
    ratios: dict[str, list[float]] = {}
    for load_name, load in ONE_AT_A_TIME.items():
        mine = Side(f"{load_name}-{name}", load(rig, [await rig.new_queue()]))
        theirs = Side(f"{load_name}-{other_name}", load(other, [await other.new_queue()]))
        result.rows += await in_turns([mine, theirs], rig.sizes)
        ratios[load_name] = against(mine, theirs)
    return ratios
