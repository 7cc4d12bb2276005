import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { exportLine, type Session, sessionResourceSchema } from '@holdfast/contracts';
import { type Frame, startPlatform, TestClient, type TestPlatform, userMessage } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

const run = promisify(execFile);
const DOCS = readFileSync(fileURLToPath(new URL('../../../docs/api.md', import.meta.url)), 'utf8');

let platform: TestPlatform;
let client: TestClient;
let elsewhere: string;
beforeAll(async () => {
  platform = await startPlatform();
  client = new TestClient(platform);
  elsewhere = await platform.secondWorkspace();
}, 240_000);
afterAll(() => platform?.stop(), 60_000);

const replay = (id: string, after: number | string = 0): Promise<Frame[]> =>
  client.frames(
    `/v1/sessions/${id}/events/stream?after=${after}`,
    (all) => all.at(-1)?.event === 'session.status_idle',
  );
const send = (id: string, ...events: object[]) => client.json(`/v1/sessions/${id}/events`, { json: { events } });
async function failure(path: string, options = {}): Promise<{ status: number; code: string }> {
  const response = await client.api(path, options);
  const { error } = (await response.json()) as { error: { details: { error_code: string } } };
  return { status: response.status, code: error.details.error_code };
}
/** A session that talked and ran a tool; its events in the log's order. */
async function worked(): Promise<string> {
  const id = await client.session();
  await send(id, userMessage('one RUN[echo hello]'), userMessage('two'));
  await client.untilIdle(id, 30_000);
  return id;
}

describe('an export', () => {
  it('is what the stream replays, as a chain that ends with its count and head', async () => {
    const id = await worked();
    const response = await client.api(`/v1/sessions/${id}/events/export`);
    expect(response.headers.get('content-type')).toMatch(/^application\/x-ndjson/);
    expect(response.headers.get('content-disposition')).toBe(`attachment; filename="${id}.ndjson"`);
    const lines = (await response.text()).trimEnd().split('\n');
    const parsed = lines.map((line) => exportLine.parse(JSON.parse(line)));
    const frames = await replay(id);
    expect(parsed.flatMap((line) => (line.type === 'event' ? [[line.version, line.event]] : []))).toEqual(
      frames.map((frame) => [frame.id, frame.data]),
    );
    expect(parsed.at(-1)).toMatchObject({ type: 'end', events: frames.length, head_hash: parsed.at(-2)?.hash });
    let hash = '';
    for (const line of lines) {
      const body = line.slice(0, line.lastIndexOf(',"hash":"'));
      hash = createHash('sha256').update(`${hash}${body}}`).digest('hex');
      expect(line.endsWith(`"${hash}"}`)).toBe(true);
    }
  });

  it('is verified by the command of the docs, which sees whatever was cut or changed', async () => {
    const id = await worked();
    const [, command = ''] = /^```sh verify-export\n(.*?)^```$/ms.exec(DOCS) ?? [];
    const verify = (text: string) =>
      run('bash', ['-o', 'pipefail', '-c', command.replace(/^curl [^|]*/, 'printf %s "$TEXT" ')], {
        env: { ...process.env, TEXT: text },
      });
    const whole = await run('bash', ['-o', 'pipefail', '-c', command], {
      env: { ...process.env, URL: platform.apiUrl, KEY: platform.apiKey, ID: id },
    });
    const text = await (await client.api(`/v1/sessions/${id}/events/export`)).text();
    const lines = text.split('\n');
    const end = JSON.parse(lines.at(-2) ?? '') as { events: number; head_hash: string };
    expect(whole.stdout).toBe(`${end.events} events, head ${end.head_hash}\n`);
    expect((await verify(text)).stdout).toBe(whole.stdout);
    const damaged = [
      lines.slice(0, -2).join('\n'),
      text.slice(0, text.length / 2),
      lines.filter((_, n) => n !== 3).join('\n'),
      text.replace('hello', 'hullo'),
      [lines[0], lines[2], lines[1], ...lines.slice(3)].join('\n'),
      '',
    ];
    for (const one of damaged) await expect(verify(one)).rejects.toMatchObject({ code: 1 });
  });

  it('of any length is sent as it is taken: a client that stops reading holds the server’s memory small', async () => {
    const id = await client.session();
    // 300 messages of 60 KB each wait in a session: 18 MB, more than the sockets' buffers take.
    const text = 'x'.repeat(60_000);
    await send(id, userMessage('SLOW[200]'));
    for (let n = 0; n < 300; n += 10)
      await send(id, ...Array.from({ length: 10 }, () => userMessage(randomBytes(8).toString('hex') + text)));
    const memory = async () => {
      const status = await client.json<{ services: { service: string; memory_bytes: number }[] }>('/v1/x/status');
      return status.services.find(({ service }) => service === 'gateway-api')?.memory_bytes ?? 0;
    };
    const before = await memory();
    const readers = await Promise.all(
      Array.from({ length: 20 }, () => {
        const asked = request(`${platform.apiUrl}/v1/sessions/${id}/events/export`, {
          headers: { 'x-api-key': platform.apiKey },
        });
        asked.end();
        return new Promise<import('node:http').IncomingMessage>((resolve, reject) => {
          asked.on('error', reject);
          asked.on('response', resolve);
        });
      }),
    );
    await sleep(3_000);
    // 20 whole exports would be 360 MB.
    expect((await memory()) - before).toBeLessThan(200 * 2 ** 20);
    const [first, ...others] = readers;
    for (const other of others) other.destroy();
    let bytes = 0;
    let last = '';
    for await (const piece of first as AsyncIterable<Buffer>) {
      bytes += piece.length;
      last = (last + piece.toString()).slice(-400);
    }
    expect(bytes).toBeGreaterThan(18e6);
    expect(last).toMatch(/"type":"end","events":\d+.*\}\n$/);
    await client.json(`/v1/sessions/${id}/events`, { json: { events: [{ type: 'user.interrupt' }] } });
  });

  it('of a session that is not there, or another workspace’s, is a 404', async () => {
    const id = await worked();
    for (const [path, headers] of [
      ['/v1/sessions/sesn_none/events/export', {}],
      [`/v1/sessions/${id}/events/export`, { 'x-api-key': elsewhere }],
    ] as const)
      expect(await failure(path, { headers })).toEqual({ status: 404, code: 'session.not-found' });
  });
});

describe('a session at a point of its log', () => {
  it('is what it was then, by version and by event', async () => {
    const id = await client.session();
    const before = await client.json<Session>(`/v1/sessions/${id}`);
    await client.json(`/v1/sessions/${id}`, { json: { title: 'later', metadata: { k: 'v' } } });
    await send(id, userMessage('one RUN[echo hello]'), userMessage('two'));
    await client.untilIdle(id, 30_000);
    const now = await client.json<Session>(`/v1/sessions/${id}`);
    const at = async (place: number | string) =>
      sessionResourceSchema.parse(await client.json(`/v1/sessions/${id}?at=${place}`));
    expect(await at(1)).toEqual({ ...before, stats: { active_seconds: 0, duration_seconds: 0 } });
    expect(await at(2)).toMatchObject({ title: 'later', metadata: { k: 'v' }, usage: { input_tokens: 0 } });
    const frames = await replay(id);
    const head = frames.at(-1)?.id ?? 0;
    expect(await at(head)).toEqual({ ...now, stats: { ...now.stats, duration_seconds: expect.any(Number) } });
    let tokens = 0;
    for (const frame of frames) {
      const then = await at(frame.id ?? 0);
      if (frame.event === 'span.model_request_end')
        tokens += (frame.data['model_usage'] as { input_tokens: number }).input_tokens;
      expect(then.usage.input_tokens).toBe(tokens);
      if (frame.event === 'session.status_running') expect(then.status).toBe('running');
    }
    expect(tokens).toBeGreaterThan(0);
    // A message stands where the agent took it, not where it was accepted.
    const second = frames.filter(({ event, data }) => event === 'user.message' && data.content?.[0]?.text === 'two');
    const [accepted, stamped] = second;
    expect(stamped?.data).toMatchObject({ id: accepted?.data.id, processed_at: expect.any(String) });
    expect(await at(stamped?.data.id ?? '')).toEqual(await at(stamped?.id ?? 0));
    expect(await at(stamped?.data.id ?? '')).toMatchObject({ status: 'running' });
    expect(await at(accepted?.id ?? 0)).toMatchObject({ status: 'idle' });
  });

  it('is refused where there is no such point, and does not exist for others', async () => {
    const [id, other] = [await worked(), await worked()];
    const head = (await replay(id)).at(-1)?.id ?? 0;
    const [foreign] = await client.events(other);
    for (const place of ['0', String(head + 1), '-1', 'x', '99999999999'])
      expect(await failure(`/v1/sessions/${id}?at=${place}`)).toEqual({
        status: 400,
        code: 'session.no-such-version',
      });
    for (const place of ['sevt_none', foreign?.id ?? ''])
      expect(await failure(`/v1/sessions/${id}?at=${place}`)).toEqual({ status: 400, code: 'event.not-in-session' });
    expect(await failure(`/v1/sessions/${id}?at=1`, { headers: { 'x-api-key': elsewhere } })).toMatchObject({
      status: 404,
    });
    await client.api(`/v1/sessions/${id}`, { method: 'DELETE' });
    expect(await failure(`/v1/sessions/${id}?at=1`)).toEqual({ status: 404, code: 'session.not-found' });
  });
});
