"""Models that are handed on: the same masks bit for bit without the project's cache, and a hub in between.

The hub is a thread on loopback that speaks as much of its HTTP as the client asks for."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from avsrepro.core.errors import InputError
from avsrepro.data.loading import open_splits
from avsrepro.experiments import sharing
from avsrepro.experiments.run import run_specs
from avsrepro.experiments.single import single_run
from avsrepro.models.pretrained import from_pretrained, model_folder, read_config, save_pretrained
from avsrepro.train.running import load_trained

MODELS = ('sdavs', 'tpavi', 'avsegformer', 'selm', 'ddeseg')
SCRIPT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from avsrepro.models import from_pretrained
torch.set_num_threads(1)
inputs, out = load_file(sys.argv[1]), {}
for name in sys.argv[3:]:
    model = from_pretrained(name)
    with torch.no_grad():
        z = model(model.normalise(inputs['frames'])[None], inputs['mel'][None]).logits
    out[name.rpartition('/')[2]] = z
save_file(out, sys.argv[2])
"""


def elsewhere(tmp_path: Path, code: str, *args, **more) -> subprocess.CompletedProcess:
    "Run Python in a process that has none of the project's places."
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('AVSREPRO_', 'HF_'))}
    places = dict(AVSREPRO_CACHE=tmp_path / 'empty', AVSREPRO_WEIGHTS=tmp_path, HF_HOME=tmp_path / 'hf')
    env = {**kept, 'HF_HUB_OFFLINE': '1', **{k: str(v) for k, v in {**places, **more}.items()}}
    words = [sys.executable, '-c', code, *map(str, args)]
    return subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def exports(tmp_path_factory):
    "Folders of all models, what they answer where they were trained, and one clip."
    place, torch_threads = tmp_path_factory.mktemp('exports'), torch.get_num_threads()
    before = os.environ.get('AVSREPRO_CACHE')
    os.environ['AVSREPRO_CACHE'] = str(place / 'cache')
    torch.set_num_threads(1)
    try:
        specs = [single_run(m, 'ms3', 'smoke') for m in MODELS]
        results = run_specs(specs, jobs=1, progress=False)
        clip, folders, answers = open_splits(specs[0].data, 'ms3')['test'][0], {}, {}
        for r in results:
            model = load_trained(r, device='cpu')
            with torch.no_grad():
                answers[r.spec.model] = model(model.normalise(clip.frames)[None], clip.mel[None]).logits
            folders[r.spec.model] = sharing.export(r, place / 'made' / r.spec.model)
        save_file(dict(frames=clip.frames, mel=clip.mel), place / 'clip.safetensors')
        yield dict(place=place, folders=folders, answers=answers, results=dict(zip(MODELS, results)))
    finally:
        torch.set_num_threads(torch_threads)
        os.environ.pop('AVSREPRO_CACHE')
        if before is not None:
            os.environ['AVSREPRO_CACHE'] = before


def test_another_process_without_the_cache_gives_the_same_masks(exports, tmp_path):
    "Every model, bit for bit, with the folder that it was trained in out of reach."
    moved = tmp_path / 'moved'
    exports_cache = exports['place'] / 'cache'
    hidden = exports['place'] / 'hidden'
    for name, folder in exports['folders'].items():
        (moved / name).mkdir(parents=True)
        for f in folder.iterdir():
            (moved / name / f.name).write_bytes(f.read_bytes())
    exports_cache.rename(hidden)
    try:
        out, clip = tmp_path / 'out.safetensors', exports['place'] / 'clip.safetensors'
        done = elsewhere(tmp_path, SCRIPT, clip, out, *(moved / m for m in MODELS))
    finally:
        hidden.rename(exports_cache)
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(out)
    assert set(found) == set(MODELS)
    for name, z in exports['answers'].items():
        assert torch.equal(found[name], z), name
    assert not (tmp_path / 'empty').exists() or not list((tmp_path / 'empty').rglob('*.safetensors'))


def test_the_record_says_what_a_video_needs(exports):
    for name, folder in exports['folders'].items():
        record, result = read_config(folder)['record'], exports['results'][name]
        assert (record['size'], record['length'], record['setting']) == ([48, 48], 5, 'ms3')
        assert record['channels'] == 1 and record['run'] == result.run_id and 'classes' not in record
        assert record['scores'][0]['score'] == pytest.approx(100 * result.means['J'], abs=0.01)
        assert record['digest'] == sharing.weights_digest(from_pretrained(folder))
        assert not {'weights', 'pretrained', 'memory'} & read_config(folder)['arguments'].keys()
        assert str(exports['place']) not in (folder / 'config.json').read_text()


def test_another_weight_is_another_digest(exports):
    model = from_pretrained(exports['folders']['sdavs'])
    before = sharing.weights_digest(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert sharing.weights_digest(model) != before


def test_the_card_is_written_from_the_record(exports):
    folder, result = exports['folders']['selm'], exports['results']['selm']
    card, record = (folder / 'README.md').read_text(), read_config(folder)['record']
    for word in (result.run_id, record['digest'], record['code'], f'{100 * result.means["J"]:.1f}'):
        assert word in card
    assert 'avsrepro train --model selm --setting ms3 --data procedural --profile smoke' in card
    assert card.startswith('---\nlibrary_name: avsrepro\n') and 'Apache-2.0' in card
    assert '{' not in card and '}' not in card


def test_nothing_is_left_of_an_export_that_fails(exports, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('avsrepro.models.pretrained.save_file', full)
    with pytest.raises(InputError, match='No space left'):
        sharing.export(exports['results']['sdavs'], tmp_path / 'made')
    assert not list(tmp_path.iterdir())


def test_a_folder_may_not_name_files_of_this_machine(exports, tmp_path):
    "Nor a checkpoint that timm would unpickle."
    config = json.loads((exports['folders']['ddeseg'] / 'config.json').read_text())
    evil = dict(backbone_options={**config['arguments']['backbone_options'], 'checkpoint_path': 'x.pth'})
    for more in (evil, dict(memory='/etc/passwd'), dict(weights=dict(visual='x.pth'))):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / 'config.json').write_text(json.dumps({**config, 'arguments': config['arguments'] | more}))
        with pytest.raises(InputError, match='is not for a model whose weights are in the folder'):
            from_pretrained(folder)


def test_weights_in_another_format_are_not_read(exports, tmp_path):
    folder = tmp_path / 'm'
    folder.mkdir()
    (folder / 'config.json').write_bytes((exports['folders']['sdavs'] / 'config.json').read_bytes())
    model = from_pretrained(exports['folders']['sdavs'])
    torch.save(model.state_dict(), folder / 'model.safetensors')
    with pytest.raises(InputError, match='expected the weights of a model'):
        from_pretrained(folder)


# a hub


class Hub(BaseHTTPRequestHandler):
    "What the client asks of a hub: who is there, make a repository, take a commit, list it and give files."

    protocol_version = 'HTTP/1.1'
    sha = 'a' * 40

    def log_message(self, *args):
        pass

    def body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length') or 0))
        data = b''
        while size := int(self.rfile.readline().split(b';')[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def answer(self, content: bytes | dict | list, code: int = 200, **headers) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for k, v in {'Content-Length': len(data), 'X-Repo-Commit': self.sha, **headers}.items():
            self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def do_GET(self):
        hub = self.server
        hub.asked.append(f'{self.command} {self.path}')
        path = self.path.split('?')[0]
        if '/resolve/' in path:
            repo, _, rest = path.strip('/').partition('/resolve/')
            name = rest.partition('/')[2]
            if name in hub.repos.get(repo, {}):
                content = hub.repos[repo][name]
                return self.answer(content, ETag=f'"{len(content):040x}"')
            return self.answer(b'', 404, **{'X-Error-Code': 'EntryNotFound'})
        repo = '/'.join(path.removeprefix('/api/models/').split('/')[:2])
        files = hub.repos.get(repo)
        if files is None:
            return self.answer(b'', 404, **{'X-Error-Code': 'RepoNotFound'})
        if '/tree/' in path:
            return self.answer(
                [dict(type='file', path=f, size=len(c), oid='0' * 40) for f, c in files.items()]
            )
        self.answer(dict(id=repo, sha=self.sha, siblings=[dict(rfilename=f) for f in files]))

    do_HEAD = do_GET

    def do_POST(self):
        hub, data = self.server, self.body()
        hub.asked.append(f'POST {self.path}')
        if self.headers.get('Authorization') != 'Bearer hf_good':
            return self.answer(dict(error='Invalid username or password.'), 401)
        if self.path == '/api/repos/create':
            given = json.loads(data)
            repo = '/'.join(filter(None, [given.get('organization'), given['name']]))
            hub.repos.setdefault(repo, {})
            hub.private[repo] = given.get('private') or given.get('visibility') == 'private'  # older, newer
            return self.answer(dict(url=f'http://{self.headers["Host"]}/{repo}'))
        repo = '/'.join(self.path.removeprefix('/api/models/').split('/')[:2])
        if '/preupload/' in self.path:
            asked = json.loads(data)['files']
            modes = [dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in asked]
            return self.answer(dict(files=modes))
        if '/commit/' in self.path:
            for line in filter(None, data.split(b'\n')):
                item = json.loads(line)
                if item['key'] == 'file':
                    value = item['value']
                    hub.repos[repo][value['path']] = base64.b64decode(value['content'])
            where = f'http://{self.headers["Host"]}/{repo}/commit/{self.sha}'
            return self.answer(dict(success=True, commitOid=self.sha, commitUrl=where))
        self.answer({})


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.repos, server.private, server.asked = {}, {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def online(hub, token: str = 'hf_good') -> dict:
    "Surroundings of a client of the hub."
    url = f'http://127.0.0.1:{hub.server_address[1]}'
    more = dict(HF_ENDPOINT=url, HF_HUB_OFFLINE='0', HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1')
    return more | dict(NO_PROXY='*', no_proxy='*', HF_TOKEN=token)


PUSH = """
import sys
from avsrepro.experiments.sharing import push_to_hub
print(push_to_hub(sys.argv[1], 'ann/hears', private=True))
"""


def test_to_a_hub_and_back(exports, hub, tmp_path):
    "What comes back is what was pushed; of what else lies there nothing is fetched."
    folder = exports['folders']['tpavi']
    pushed = elsewhere(tmp_path, PUSH, folder, **online(hub))
    assert pushed.returncode == 0, pushed.stderr[-3000:]
    assert pushed.stdout.strip().endswith(f'/ann/hears/commit/{Hub.sha}') and hub.private['ann/hears'] is True
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert {n: c for n, c in hub.repos['ann/hears'].items() if n != '.gitattributes'} == files
    hub.repos['ann/hears'] |= {'evil.py': b'raise SystemExit', 'pytorch_model.bin': b'\x80\x04.'}
    hub.asked.clear()
    out, clip = tmp_path / 'out.safetensors', exports['place'] / 'clip.safetensors'
    done = elsewhere(tmp_path, SCRIPT, clip, out, 'ann/hears', **online(hub))
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(load_file(out)['hears'], exports['answers']['tpavi'])
    fetched = {a.rpartition('/')[2] for a in hub.asked if '/resolve/' in a}
    assert fetched == {'config.json', 'model.safetensors'}
    again = elsewhere(tmp_path, SCRIPT, clip, out, 'ann/hears')  # offline, from what was fetched before
    assert again.returncode == 0, again.stderr[-3000:]


FAILS = """
import sys
from avsrepro.core.errors import InputError
from avsrepro.models import from_pretrained
from avsrepro.experiments.sharing import push_to_hub
try:
    from_pretrained('ann/nothing') if sys.argv[1] == 'get' else push_to_hub(sys.argv[1], 'ann/hears')
except InputError as e:
    print(e)
"""


def test_a_hub_that_refuses_is_one_sentence(exports, hub, tmp_path):
    missing = elsewhere(tmp_path, FAILS, 'get', **online(hub))
    barred = elsewhere(tmp_path, FAILS, exports['folders']['sdavs'], **online(hub, 'hf_bad'))
    offline = elsewhere(tmp_path, FAILS, 'get')
    for done, word in ((missing, 'ann/nothing'), (barred, 'HF_TOKEN'), (offline, 'no hub answers')):
        assert done.returncode == 0, done.stderr[-2000:]
        assert word in done.stdout and done.stdout.count('\n') == 1, done.stdout
    assert not hub.repos


def test_a_folder_goes_before_a_hub(exports, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'ann').mkdir()
    (tmp_path / 'ann' / 'hears').mkdir()
    assert model_folder('ann/hears') == Path('ann/hears')


# where no model is given


def test_the_newest_suitable_export_is_taken(exports, tmp_path, monkeypatch):
    "One that does not say what a video needs is passed over, whatever its age."
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path))
    monkeypatch.setattr('avsrepro.experiments.run.run_specs', lambda *a, **k: pytest.fail('trains'))
    models = tmp_path / 'models'
    for n, name in enumerate(('tpavi', 'sdavs')):
        source = exports['folders'][name]
        (models / name).mkdir(parents=True)
        for f in source.iterdir():
            (models / name / f.name).write_bytes(f.read_bytes())
        os.utime(models / name / 'config.json', (1000 + n, 1000 + n))
    config = read_config(exports['folders']['sdavs'])
    save_pretrained(from_pretrained(exports['folders']['sdavs']), models / 'bare', config['arguments'])
    (models / 'broken').mkdir()
    assert sharing.suitable_model(quiet=True) == models / 'sdavs'
    os.utime(models / 'tpavi' / 'config.json', (2000, 2000))
    assert sharing.suitable_model(quiet=True) == models / 'tpavi'


def test_where_there_is_none_one_is_trained_once_after_saying_so(exports, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('AVSREPRO_CACHE', str(tmp_path))
    folder = sharing.suitable_model(data='procedural', profile='smoke')
    said = capsys.readouterr().err
    assert 'Training sdavs on procedural' in said and ' min ' in said and 'guitar' in said
    record = read_config(folder)['record']
    assert folder.parent == tmp_path / 'models' and record['command'].startswith('avsrepro segment')
    monkeypatch.setattr('avsrepro.experiments.run.run_specs', lambda *a, **k: pytest.fail('trains again'))
    assert sharing.suitable_model(quiet=True) == folder
    assert capsys.readouterr().err == ''


def test_who_waits_for_a_model_is_told_so(tmp_path):
    said = []
    with sharing._wait_for(tmp_path / 'suitable', said.append):
        assert said == []
        waiting = sharing._wait_for(tmp_path / 'suitable', said.append)
        assert len(said) == 1 and 'Another process' in said[0]
    with waiting:
        pass
