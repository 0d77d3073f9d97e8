"""The benchmarks that the programs know; a new one is its module and a name in this list."""

from listwise_preference.scoring import amber, beaf, dash_b, hallusionbench, mmhal, object_halbench, pope

BENCHMARKS = {
    one.name: one
    for one in (
        amber.AMBER,
        object_halbench.OBJECT_HALBENCH,
        object_halbench.CHAIR,
        mmhal.MMHAL,
        hallusionbench.HALLUSIONBENCH,
        pope.POPE,
        dash_b.DASH_B,
        beaf.BEAF,
    )
}
