"A stand-in for the Hugging Face Hub on this machine: the part of its HTTP interface that sends and fetches models"
import base64, hashlib, json, re, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = '.safetensors', '.bin', '.pt', '.pth', '.onnx'
UNKNOWN = 'Invalid username or password.'
ATTRIBUTES = ''.join(f'*{o} filter=lfs diff=lfs merge=lfs -text\n' for o in LARGE).encode()

def is_large(name, size): return size > 0 and (name.endswith(LARGE) or size > 10_000_000)

def git_hash(data): return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()

def file_hash(name, data):
    "What the Hub knows a file's content by"
    return hashlib.sha256(data).hexdigest() if is_large(name, len(data)) else git_hash(data)

class Refused(Exception):
    "An answer other than success; clients tell the reason by `code`"
    def __init__(self, status, message, code='', commit='', **body):
        self.status, self.body = status, {'error': message, **body}
        self.headers = {'X-Error-Message': message, 'X-Error-Code': code, 'X-Repo-Commit': commit}

class Hub:
    """The stand-in answers at `endpoint` while its context is open, and refuses connections after it.

    `repos` has by id whether each is `private`, its `commits` (bytes by name) and their `hashes`; `requests` has the
    method and path of all that was asked. Any token may write, and read what is private. With `cut` set to n, every
    download breaks off after the file's first n bytes. A client with `hf_xet` needs `HF_HUB_DISABLE_XET=1` to send."""
    def __init__(self): self.repos, self.requests, self.sent, self.cut = {}, [], {}, None

    def __enter__(self):
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.server.hub, self.endpoint = self, f'http://127.0.0.1:{self.server.server_port}'
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, repo_id, files, private=False):
        "Commit `files` (bytes by name) to a repository, made with the first commit, and return the commit's hash"
        repo = self.repos.setdefault(repo_id, dict(private=private, commits=[], hashes=[]))
        return self.commit(repo, {**(repo['commits'] or [{}])[-1], **files})

    def commit(self, repo, files):
        "Make `files` the repository's newest commit, whose hash tells its files and the commits before it"
        told = repo['hashes'][-1:], sorted((name, git_hash(data)) for name, data in files.items())
        repo['commits'].append(files)
        repo['hashes'].append(hashlib.sha1(repr(told).encode()).hexdigest())
        return repo['hashes'][-1]

    def find(self, token, repo_id, revision='main'):
        "A repository, with the hash and the files of one of its commits; without a token, what is private is missing"
        repo = self.repos.get(repo_id)
        if token and not repo: raise Refused(404, 'Repository not found', 'RepoNotFound')
        if not repo or repo['private'] and not token: raise Refused(401, UNKNOWN, 'RepoNotFound')
        if revision == 'main': revision = repo['hashes'][-1]
        if revision not in repo['hashes']: raise Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return repo, revision, repo['commits'][repo['hashes'].index(revision)]

# What is answered, by method and path. The functions get the hub, the token, the body and the pattern's groups.

routes = []

def route(method, pattern): return lambda f: routes.append((method, pattern, f)) or f

@route('POST', '/api/repos/create')
def create(hub, token, body):
    asked = json.loads(body)
    repo_id = f"{asked.get('organization') or 'me'}/{asked['name']}"
    url = f'{hub.endpoint}/{repo_id}'
    if repo_id in hub.repos: raise Refused(409, 'You already created this model repo', url=url)
    hub.add(repo_id, {'.gitattributes': ATTRIBUTES}, bool(asked.get('private') or asked.get('visibility') == 'private'))
    return dict(url=url, name=repo_id)

@route('POST', '/api/validate-yaml')
def validate(hub, token, body): return dict(errors=[], warnings=[])

@route('POST', '/api/models/(.+)/preupload/([^/]+)')
def preupload(hub, token, body, repo_id, revision):
    _, _, files = hub.find(token, repo_id, revision)
    def mode(path, size, **_):
        return dict(path=path, uploadMode='lfs' if is_large(path, size) else 'regular', shouldIgnore=False,
            oid=file_hash(path, files[path]) if path in files else None)
    return dict(files=[mode(**o) for o in json.loads(body)['files']])

@route('POST', '/(.+).git/info/lfs/objects/batch')
def batch(hub, token, body, repo_id):
    hub.find(token, repo_id)
    def answer(oid, size):
        to = {o: dict(href=f'{hub.endpoint}/lfs/{last}') for o, last in (('upload', oid), ('verify', 'verify'))}
        return dict(oid=oid, size=size, **{} if oid in hub.sent else dict(actions=to))
    return dict(transfer='basic', objects=[answer(o['oid'], o['size']) for o in json.loads(body)['objects']])

@route('PUT', '/lfs/([0-9a-f]{64})')
def put(hub, token, body, oid):
    if hashlib.sha256(body).hexdigest() != oid: raise Refused(400, 'The content does not have this SHA-256')
    hub.sent[oid] = body

@route('POST', '/lfs/verify')
def verify(hub, token, body):
    asked = json.loads(body)
    if len(hub.sent.get(asked['oid'], b'')) != asked['size']: raise Refused(404, 'Object not found')

@route('POST', '/api/models/(.+)/commit/([^/]+)')
def commit(hub, token, body, repo_id, revision):
    repo, _, files = hub.find(token, repo_id, revision)
    files = dict(files)
    for line in map(json.loads, body.splitlines()):
        o = line['value']
        if line['key'] == 'file': files[o['path']] = base64.b64decode(o['content'])
        if line['key'] == 'lfsFile':
            if o['oid'] not in hub.sent: raise Refused(400, f"{o['path']} was not uploaded")
            files[o['path']] = hub.sent[o['oid']]
        if line['key'] == 'deletedFile': del files[o['path']]
    made = hub.commit(repo, files)
    return dict(success=True, commitOid=made, commitUrl=f'{hub.endpoint}/{repo_id}/commit/{made}')

@route('GET', '/api/models/(.+)/tree/([^/]+)')
def tree(hub, token, body, repo_id, revision):
    def entry(name, data):
        size = len(data)
        lfs = dict(lfs=dict(oid=file_hash(name, data), size=size, pointerSize=130)) if is_large(name, size) else {}
        return dict(type='file', path=name, size=size, oid=git_hash(data), **lfs)
    return [entry(*o) for o in sorted(hub.find(token, repo_id, revision)[2].items())]

@route('GET', '/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?')
def info(hub, token, body, repo_id, revision):
    repo, sha, files = hub.find(token, repo_id, revision or 'main')
    return dict(id=repo_id, modelId=repo_id, author=repo_id.split('/')[0], sha=sha, private=repo['private'], tags=[],
        downloads=0, likes=0, siblings=[dict(rfilename=o) for o in sorted(files)])

@route('HEAD GET', '/(.+)/resolve/([^/]+)/(.+)')
def resolve(hub, token, body, repo_id, revision, name):
    _, sha, files = hub.find(token, repo_id, revision)
    if name not in files: raise Refused(404, 'Entry not found', 'EntryNotFound', sha)
    return sha, name, files[name]

class Handler(BaseHTTPRequestHandler):
    "Answers one request and closes the connection, so that none outlives the server"
    def log_message(self, *args): pass

    def answer(self):
        hub, path = self.server.hub, urlsplit(self.path).path
        hub.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        try: self.look_up(hub, path, body)
        except Refused as e: self.send(e.status, json.dumps(e.body).encode(), e.headers)

    do_HEAD = do_GET = do_POST = do_PUT = answer

    def look_up(self, hub, path, body):
        token = self.headers.get('Authorization', '').removeprefix('Bearer').strip()
        for methods, pattern, function in routes:
            found = re.fullmatch(pattern, path)
            if not found or self.command not in methods: continue
            if methods == 'POST' and not token and function is not validate:
                # a 401 of a repository means RepoNotFound to clients over https, but over http they need to be told
                raise Refused(401, UNKNOWN, 'RepoNotFound' if found.groups() else '')
            result = function(hub, token, body, *(o and unquote(o) for o in found.groups()))
            if function is resolve: return self.send_file(*result)
            return self.send(200, json.dumps(result).encode(), {'Content-Type': 'application/json'})
        raise Refused(404, 'No such page')

    def send_file(self, sha, name, data):
        "Send a file, or the part of it that is asked for"
        tag, size, cut = f'"{file_hash(name, data)}"', len(data), self.server.hub.cut
        headers = {'X-Repo-Commit': sha, 'ETag': tag, 'Accept-Ranges': 'bytes'}
        if is_large(name, size): headers.update({'X-Linked-ETag': tag, 'X-Linked-Size': size})
        part = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if not part: return self.send(200, data, headers, cut)
        first, stop = int(part[1]), min(int(part[2] or size) + 1, size)
        if first >= stop: return self.send(416, b'', {'Content-Range': f'bytes */{size}'})
        headers['Content-Range'] = f'bytes {first}-{stop - 1}/{size}'
        self.send(206, data[first:stop], headers, None if cut is None else max(0, cut - first))

    def send(self, status, data, headers, cut=None):
        "Answer with the headers that have a value and the data, of which `cut` keeps back all after so many bytes"
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': len(data)}.items():
            if value != '': self.send_header(name, str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data[:cut])
