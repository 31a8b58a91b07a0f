from joblib_stateful import StatefulExecutor


def note(data):
    with open("done", "a") as file:
        file.write(f"{len(data)}\n")


if __name__ == "__main__":
    executor = StatefulExecutor(n_jobs=1)
    executor.submit(abs, -1).result()
    for _ in range(4):
        executor.submit(note, bytes(300_000))
    print("the end")
