"""Score responses as the benchmarks' own programs do: python score.py BENCHMARK RESPONSES ... (score.py --help)."""

from listwise_preference.probe.command import main

if __name__ == "__main__":
    main()
