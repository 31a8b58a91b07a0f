from _compare import compare


class Single:
    instance = None

    def __new__(cls):
        if cls.instance is None:
            cls.instance = super().__new__(cls)
            cls.instance.number = 5
        return cls.instance


single = Single()
compare(lambda item: (item is Single(), item.number), [single])
compare(lambda number: (Single() is Single(), Single().number), [1])
