from joblib_stateful import stateful_map


class Squares:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index * index


def load(_):
    from torch.utils.data import DataLoader

    return [batch.tolist() for batch in DataLoader(Squares(), batch_size=2, num_workers=2)]


if __name__ == "__main__":
    print(*stateful_map(load, [0], n_jobs=1))
