import dataclasses
import itertools

from joblib_stateful import stateful_map

FACTOR = 2
CACHE = {}


@dataclasses.dataclass
class Job:
    number: int
    ids = itertools.count()

    def __post_init__(self):
        self.id = next(Job.ids)

    def run(self):
        CACHE[self.number] = FACTOR * self.number
        return CACHE[self.number]


class NoGood(Exception):
    pass


class Worker:
    def __call__(self, job):
        if job.number == 13:
            raise NoGood(job)
        return job, job.run(), len(CACHE), isinstance(job, Job)


if __name__ == "__main__":
    results = list(stateful_map(Worker, map(Job, range(13)), n_jobs=1))
    assert [job.id for job, *_ in results] == list(range(13)), results
    assert all(type(job) is Job for job, *_ in results)
    assert [rest for _, *rest in results] == [[2 * i, i + 1, True] for i in range(13)], results
    assert not CACHE
    try:
        list(stateful_map(Worker, [Job(13)], n_jobs=1))
    except NoGood as error:
        print(type(error.args[0]) is Job, next(Job.ids))
