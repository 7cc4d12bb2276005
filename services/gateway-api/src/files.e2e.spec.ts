import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import type { FileResource, Session } from '@holdfast/contracts';
import { type S3Server, startPlatform, startS3, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

const MIB = 1024 * 1024;
const LARGE_MIB = 300;
/** What the gateway may grow by while a file of {@link LARGE_MIB} goes through it, both ways. */
const GROWTH_MIB = 110;
const BOUNDARY = 'b0undary';

let s3: S3Server;
let platform: TestPlatform;
let client: TestClient;
let stranger: TestClient;
beforeAll(async () => {
  s3 = await startS3();
  platform = await startPlatform({ ...s3.settings, BLOB_S3_PREFIX: 'spec', FILE_MAX_BYTES: String(LARGE_MIB * MIB) });
  client = new TestClient(platform);
  stranger = new TestClient({ apiUrl: platform.apiUrl, apiKey: await platform.secondWorkspace() });
}, 300_000);
afterAll(async () => {
  await platform?.stop();
  await s3?.stop();
}, 60_000);

const formOf = (bytes: string, name = 'a.txt', type = 'text/plain'): FormData => {
  const form = new FormData();
  form.append('file', new Blob([bytes], { type }), name);
  return form;
};
const upload = (bytes: string, name?: string, headers: Record<string, string> = {}): Promise<FileResource> =>
  client.json('/v1/files', { method: 'POST', body: formOf(bytes, name), headers });
const failure = async (response: Response): Promise<{ status: number; code: string }> => {
  const body = (await response.json()) as {
    type: string;
    request_id: string;
    error: { details: { error_code: string } };
  };
  expect(body).toMatchObject({ type: 'error', request_id: response.headers.get('request-id') });
  return { status: response.status, code: body.error.details.error_code };
};

/** The most memory that a process has held, in MiB, since it was last asked to forget. */
const peakMib = (pid: number): number =>
  Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;

/** Sends a form of one large file piece by piece, as fast as it is taken; resolves with the answer. */
function uploadLarge(mib: number, bodyBytes = mib * MIB): Promise<{ status: number; text: string; digest: string }> {
  const head = `--${BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="large.bin"\r\ncontent-type: application/octet-stream\r\n\r\n`;
  const tail = `\r\n--${BOUNDARY}--\r\n`;
  const hash = createHash('sha256');
  const { hostname, port } = new URL(platform.apiUrl);
  return new Promise((resolve, reject) => {
    const sending = request(
      {
        hostname,
        port,
        method: 'POST',
        path: '/v1/files',
        headers: {
          'x-api-key': platform.apiKey,
          'content-type': `multipart/form-data; boundary=${BOUNDARY}`,
          'content-length': head.length + bodyBytes + tail.length,
        },
      },
      (answer) => {
        let text = '';
        answer.on('data', (piece) => (text += String(piece)));
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text, digest: hash.digest('hex') }));
      },
    );
    sending.on('error', reject);
    void (async () => {
      sending.write(head);
      const piece = randomBytes(MIB);
      for (let n = 0; n < mib && !sending.destroyed; n++) {
        piece.writeUInt32BE(n);
        hash.update(piece);
        if (!sending.write(Buffer.from(piece))) await new Promise((drained) => sending.once('drain', drained));
      }
      sending.end(tail);
    })();
  });
}

describe('files', () => {
  it('come back as they were sent, as an attachment that no browser runs', async () => {
    const made = await upload('<script>alert(1)</script>', 'übersicht "1".html'.replaceAll('"', "'"));
    const response = await client.api(`/v1/files/${made.id}/content`);
    expect(await response.text()).toBe('<script>alert(1)</script>');
    expect(Object.fromEntries(response.headers)).toMatchObject({
      'content-type': 'text/plain',
      'content-length': '25',
      'x-content-type-options': 'nosniff',
      'content-disposition': `attachment; filename="_bersicht '1'.html"; filename*=UTF-8''%C3%BCbersicht%20%271%27.html`,
      'content-security-policy': expect.stringContaining('sandbox'),
    });
  });

  it('are listed newest first, page by page, by id and by scope', async () => {
    const made: FileResource[] = [];
    for (let n = 0; n < 5; n++) made.unshift(await upload(`listed ${n}`));
    const ids = made.map(({ id }) => id);
    const found: string[] = [];
    let page: string | null = '';
    while (page !== null && found.length < ids.length) {
      const answer: { data: FileResource[]; next_page: string | null } = await client.json(
        `/v1/files?limit=2${page === '' ? '' : `&page=${page}`}`,
      );
      found.push(...answer.data.map(({ id }) => id));
      page = answer.next_page;
    }
    expect(found.slice(0, 5)).toEqual(ids);
    const list = (query: string) =>
      client.json<{ data: FileResource[]; next_page: string | null }>(`/v1/files?${query}`);
    const [first = '', second = ''] = ids;
    expect(await list(`ids[]=${first}&ids[]=${second}&ids[]=${second}&ids[]=file_none`)).toMatchObject({
      data: [{ id: first }, { id: second }],
      next_page: null,
    });
    expect(await list('scope_id=sesn_none')).toMatchObject({ data: [], next_page: null });
    expect(await failure(await client.api(`/v1/files?ids[]=${first}&limit=1`))).toMatchObject({ status: 400 });
  });

  it('are stored once for one key, and for a retry; another file under the key is refused', async () => {
    const headers = { 'idempotency-key': 'a file' };
    const one = await upload('same', 'a.txt', headers);
    expect(await upload('same', 'a.txt', headers)).toEqual(one);
    const other = await client.api('/v1/files', { method: 'POST', body: formOf('other'), headers });
    expect(await failure(other)).toEqual({ status: 409, code: 'idempotency.key-reused' });
    const first = await upload('retried', 'r.txt', { 'x-stainless-retry-count': '0' });
    expect(await upload('retried', 'r.txt', { 'x-stainless-retry-count': '1' })).toEqual(first);
  });

  it('of another workspace do not exist, nor do deleted and expired ones', async () => {
    const { id } = await upload('secret');
    for (const path of [`/v1/files/${id}`, `/v1/files/${id}/content`])
      expect(await failure(await stranger.api(path))).toEqual({ status: 404, code: 'file.not-found' });
    expect(await failure(await stranger.api(`/v1/files/${id}`, { method: 'DELETE' }))).toMatchObject({ status: 404 });
    expect(await stranger.json(`/v1/files?ids[]=${id}`)).toMatchObject({ data: [] });
    expect(await client.json(`/v1/files/${id}`, { method: 'DELETE' })).toEqual({ id, type: 'file_deleted' });
    expect(await failure(await client.api(`/v1/files/${id}/content`))).toMatchObject({ status: 404 });
    expect(await failure(await client.api(`/v1/files/${id}`, { method: 'DELETE' }))).toMatchObject({ status: 404 });
    const expired = await upload('expired');
    await platform.query(
      `update files set resource = jsonb_set(resource, '{expires_at}', '"2026-01-01T00:00:00.000Z"') where id = $1`,
      [expired.id],
    );
    expect(await failure(await client.api(`/v1/files/${expired.id}/content`))).toEqual({
      status: 404,
      code: 'file_expired',
    });
  });

  it('are refused before anybody who may not send them has sent them', async () => {
    const form = (headers: Record<string, string>) =>
      client.api('/v1/files', { method: 'POST', body: formOf('x'), headers });
    expect(await failure(await form({ 'x-api-key': 'hf_wrong' }))).toMatchObject({ status: 401 });
    expect(await failure(await client.api('/v1/files', { json: { file: 'x' } }))).toEqual({
      status: 400,
      code: 'upload.no-form',
    });
    expect(await failure(await client.api('/v1/files', { method: 'POST' }))).toEqual({
      status: 400,
      code: 'upload.no-form',
    });
  });

  it('of a session lie in its sandbox where they shall, before its next call, and stay when they are deleted', async () => {
    const [one, two, late] = await Promise.all([
      upload('first', 'one.txt'),
      upload('second', 'two.txt'),
      upload('late'),
    ]);
    const agent = await client.json<{ id: string }>('/v1/agents', {
      json: { name: 'files', model: 'demo', tools: [{ type: 'agent_toolset_20260401' }] },
    });
    const environment = await client.json<{ id: string }>('/v1/environments', { json: { name: 'files' } });
    const session = await client.json<Session>('/v1/sessions', {
      json: {
        agent: agent.id,
        environment_id: environment.id,
        resources: [
          { type: 'file', file_id: one.id },
          { type: 'file', file_id: two.id, mount_path: '/data/two.txt' },
        ],
      },
    });
    expect(session.resources).toMatchObject([
      { type: 'file', file_id: one.id, mount_path: `/mnt/session/uploads/${one.id}` },
      { type: 'file', file_id: two.id, mount_path: '/mnt/session/uploads/data/two.txt' },
    ]);
    const run = async (command: string): Promise<string> => {
      await client.json(`/v1/sessions/${session.id}/events`, { json: { events: [userMessage(`RUN[${command}]`)] } });
      const events = await client.untilIdle(session.id, 30_000);
      const result = events.findLast(({ type }) => type === 'agent.tool_result');
      return result?.content?.map(({ text }) => text).join('') ?? '';
    };
    // Its bytes are the session's as long as it may run.
    await client.json(`/v1/files/${one.id}`, { method: 'DELETE' });
    expect(
      await run(`cat /mnt/session/uploads/${one.id} /mnt/session/uploads/data/two.txt; ls /mnt/session`),
    ).toContain('firstsecond');
    const added = await client.json<{ id: string }>(`/v1/sessions/${session.id}/resources`, {
      json: { type: 'file', file_id: late.id, mount_path: 'late.txt' },
    });
    await run('echo mine > /mnt/session/uploads/data/two.txt');
    expect(await run('cat /mnt/session/uploads/late.txt /mnt/session/uploads/data/two.txt')).toMatch(/latemine/);
    expect(await client.json(`/v1/sessions/${session.id}/resources/${added.id}`, { method: 'DELETE' })).toEqual({
      id: added.id,
      type: 'session_resource_deleted',
    });
    expect(await client.json(`/v1/sessions/${session.id}/resources`)).toMatchObject({
      data: [{}, {}],
      next_page: null,
    });
    const refused = (body: object) => client.api(`/v1/sessions/${session.id}/resources`, { json: body });
    expect(await failure(await refused({ type: 'file', file_id: 'file_none' }))).toMatchObject({ status: 404 });
    expect(await failure(await refused({ type: 'file', file_id: late.id, mount_path: '../x' }))).toMatchObject({
      status: 400,
    });
    expect(await failure(await refused({ type: 'memory_store', memory_store_id: 'm' }))).toMatchObject({ status: 400 });
    expect(await failure(await stranger.api(`/v1/sessions/${session.id}/resources/${added.id}`))).toMatchObject({
      status: 404,
    });
  }, 90_000);

  it('that a session leaves in its outputs folder are its files when it is idle', async () => {
    const id = await client.session();
    const run = async (command: string) => {
      await client.json(`/v1/sessions/${id}/events`, { json: { events: [userMessage(`RUN[${command}]`)] } });
      await client.untilIdle(id, 60_000);
      return (await client.json<{ data: FileResource[] }>(`/v1/files?scope_id=${id}`)).data;
    };
    expect(await run('true')).toEqual([]);
    const [report] = await run('mkdir -p /mnt/session/outputs/a && echo done > /mnt/session/outputs/a/report.txt');
    expect(report).toMatchObject({ filename: 'report.txt', x_path: 'a/report.txt', scope: { type: 'session', id } });
    expect(await (await client.api(`/v1/files/${report?.id}/content`)).text()).toBe('done\n');
    expect(await run('cat /mnt/session/outputs/a/report.txt')).toEqual([report]);
    const all = await run('seq 8000000 > /mnt/session/outputs/big.txt; ln -s /etc/passwd /mnt/session/outputs/link');
    expect(all.map(({ x_path }) => x_path)).toEqual(['big.txt', 'a/report.txt']);
    const big = Buffer.from(await (await client.api(`/v1/files/${all[0]?.id}/content`)).arrayBuffer());
    expect(big.length).toBe(all[0]?.size_bytes);
    expect(big.toString('utf8', big.length - 8)).toBe('8000000\n');
    expect(await stranger.json(`/v1/files?scope_id=${id}`)).toMatchObject({ data: [] });
  }, 120_000);

  it('are held in no memory, however large: uploaded, downloaded, too large, and cut off', async () => {
    const pid = platform.pid('gateway-api');
    // A first one, so that what any upload loads is loaded.
    await uploadLarge(20);
    const beforeMib = peakMib(pid);
    const { status, text, digest } = await uploadLarge(LARGE_MIB);
    expect({ status, text }).toMatchObject({ status: 200 });
    const file = JSON.parse(text) as FileResource;
    expect(file).toMatchObject({ size_bytes: LARGE_MIB * MIB, mime_type: 'application/octet-stream' });

    const response = await client.api(`/v1/files/${file.id}/content`);
    expect(response.headers.get('content-length')).toBe(String(LARGE_MIB * MIB));
    const hash = createHash('sha256');
    for await (const piece of response.body ?? []) hash.update(piece as Uint8Array);
    expect(hash.digest('hex')).toBe(digest);

    // A reader that goes away, and one that reads slowly.
    for (let n = 0; n < 5; n++) {
      const abort = new AbortController();
      const reading = await client.api(`/v1/files/${file.id}/content`, { signal: abort.signal });
      await reading.body?.getReader().read();
      if (n === 0) await sleep(1_000);
      abort.abort();
    }
    const tooLarge = await uploadLarge(1, LARGE_MIB * MIB * 2).catch(() => ({ status: 413 }));
    expect(tooLarge).toMatchObject({ status: 413 });
    const grownMib = peakMib(pid) - beforeMib;
    process.stderr.write(`   the gateway grew by ${grownMib.toFixed(0)} MiB above ${beforeMib.toFixed(0)} MiB\n`);
    expect(grownMib).toBeLessThan(GROWTH_MIB);
    expect(await client.json(`/v1/files/${file.id}`)).toEqual(file);
  }, 180_000);
});
