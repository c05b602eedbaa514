"""Python processes that start in a moment: forked from one that has imported torch and mmengine already.

Importing them takes longer than most of what the tests run in processes of their own. :func:`forked_python` returns the
path of a program that is called like Python, with ``SCRIPT``, ``-m MODULE`` or ``-c CODE``, before it ``-u`` or not. It
has a server fork a process with its own arguments, environment, folder and files, and stands for that process: it ends
with its exit code or signal, passes on what signals it gets, and takes it along when it is killed.
"""

import array
import atexit
import ctypes
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

PRELOADED = ('mmengine.runner', 'pixnerd_plugin.engine', 'pixnerd_plugin.evaluation', 'sklearn.datasets')
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PROGRAM = '#!/bin/sh\nexec "{python}" -SE "{file}" call "{folder}" "$@"\n'


@functools.cache
def forked_python() -> str:
    """Start the server, which ends with this process, and return the program; Python itself where this is not Linux."""
    if sys.platform != 'linux':
        return sys.executable
    folder = tempfile.mkdtemp(prefix='pixnerd_tests_')
    atexit.register(shutil.rmtree, folder)
    program = Path(folder, 'python')
    program.write_text(PROGRAM.format(python=sys.executable, file=__file__, folder=folder))
    program.chmod(0o755)
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parents[1]))
    server = subprocess.Popen([sys.executable, __file__, 'serve', folder], env=environment, stdout=subprocess.PIPE)
    atexit.register(server.wait)
    atexit.register(server.kill)
    if not server.stdout.readline():
        raise RuntimeError('the server of forked processes did not start')
    return str(program)


def call(folder: str, arguments: list[str]) -> None:
    """What the program does."""
    # The process may be seen to run before its number is known here: what comes until then waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    server = socket.socket(socket.AF_UNIX)
    server.connect(f'{folder}/socket')
    request = dict(arguments=arguments, environment=dict(os.environ), folder=os.getcwd(), program=f'{folder}/python')
    server.sendmsg([b' '], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', (0, 1, 2)))])
    server.sendall(json.dumps(request).encode() + b'\n')
    answers = server.makefile()
    pid = int(answers.readline())
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    code = int(answers.readline())
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(folder: str) -> None:
    """Answer calls, each in a process that waits for the one it forks."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for module in PRELOADED:
        importlib.import_module(module)
    # Else a process copies all that was imported as soon as it looks for garbage.
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f'{folder}/socket')
        listener.listen(64)
        print('ready', flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    process = multiprocessing.get_context('fork').Process(target=run, args=(request, files, connection))
    process.start()
    connection.sendall(f'{process.pid}\n'.encode())
    for file in files:
        os.close(file)
    if process.sentinel in wait([process.sentinel, connection]):
        process.join()
        connection.sendall(f'{process.exitcode}\n'.encode())
    else:
        process.kill()  # as was the program that stood for it
        process.join()
    # Python's own end would take longer than all this.
    os._exit(0)


def run(request: dict, files: list[int], connection: socket.socket) -> None:
    """Be the process that was called for."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request['environment'])
    os.chdir(request['folder'])
    # What this process starts with its own Python is forked as well.
    sys.executable = request['program']
    arguments = request['arguments']
    if arguments[0] == '-u':
        sys.stdout.reconfigure(write_through=True)
        del arguments[0]
    paths = [path for path in os.environ.get('PYTHONPATH', '').split(os.pathsep) if path]
    kind = arguments[0]
    folder = os.getcwd() if kind in ('-c', '-m') else str(Path(kind).parent.resolve())
    sys.path[:1] = [folder, *paths]
    if kind == '-m':
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name='__main__', alter_sys=True)
    elif kind == '-c':
        sys.argv = [kind, *arguments[2:]]
        exec(compile(arguments[1], '<string>', 'exec'), dict(__name__='__main__'))
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name='__main__')


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == '__main__':
    if sys.argv[1] == 'call':
        call(sys.argv[2], sys.argv[3:])
    else:
        serve(sys.argv[2])
