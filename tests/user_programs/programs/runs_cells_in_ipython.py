from IPython.core.interactiveshell import InteractiveShell

if __name__ == "__main__":
    shell = InteractiveShell.instance(colors="NoColor")
    shell.run_cell("""
from joblib_stateful import stateful_map
class Model:
    def __call__(self, item):
        return 1 // item  # the line in the cell
""")
    shell.run_cell("""list(stateful_map(Model, [1, 0], n_jobs=1))  # the user's line""")
