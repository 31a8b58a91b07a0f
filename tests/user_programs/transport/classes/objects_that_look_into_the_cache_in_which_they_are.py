from _compare import compare


class Name:
    known = {}

    def __new__(cls, text):
        if text not in cls.known:
            cls.known[text] = super().__new__(cls)
            cls.known[text].text = text
        return cls.known[text]

    def __getnewargs__(self):
        return (self.text,)


class State:
    states = {}

    def __init__(self, number):
        self.number = number
        State.states[number] = self

    def __setstate__(self, state):
        self.__dict__.update(state)
        State.states.setdefault(self.number, self)

    def next(self):
        return State.states.get(self.number + 1)


name, states = Name("a"), [State(1), State(2)]
compare(lambda item: (item is Name("a"), item.text, sorted(Name.known)), [name])
compare(lambda item: item.next() and item.next().number, states)
