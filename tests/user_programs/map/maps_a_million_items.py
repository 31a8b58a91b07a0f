import sys
import tracemalloc

from joblib_stateful import stateful_map

if __name__ == "__main__":
    ordered = sys.argv[1] == "True"
    total = 0
    items = (bytes(200) for _ in range(1_000_000))
    results = stateful_map(len, items, n_jobs=2, ordered=ordered)
    for number, result in enumerate(results):
        total += result
        if number == 1000:
            tracemalloc.start(1)
        if number == 400_000:  # these alone would weigh 93 MB; to trace all would take too long
            print(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    print(number + 1, total)
