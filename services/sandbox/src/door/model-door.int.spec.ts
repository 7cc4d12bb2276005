import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus, Registration } from '@holdfast/bus';
import { type DoorAnswer, type DoorQuestion, modelDoorSubject } from '@holdfast/contracts';
import { createLogger } from '@holdfast/platform';
import { type NatsServer, startNats } from '@holdfast/testing';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { GatewayConnections, ModelDoor } from './model-door.ts';

const KEY = 'sk-of-the-gateway';
const CHAT = '/v1/chat/completions';
const END = { choices: [{ finish_reason: 'stop' }], usage: { prompt_tokens: 3, completion_tokens: 2 } };

let nats: NatsServer & { dir: string };
let session: Bus;
let sandbox: Bus;
let gateway: Server;
let folder: string;
let door: ModelDoor;
let connections: GatewayConnections;
/** What the gateway was asked, and how it answers. */
let asked: { url: string; headers: IncomingMessage['headers']; body: Record<string, unknown> }[];
let answer: (response: ServerResponse, n: number) => void;
/** What the turn was told, and what it says. */
let told: DoorQuestion[];
let turn: (question: DoorQuestion) => DoorAnswer;
let worker: Registration | null;

beforeAll(async () => {
  nats = await startNats();
  [session, sandbox] = await Promise.all([nats.connect('session'), nats.connect('sandbox')]);
}, 120_000);
afterAll(async () => {
  await Promise.all([session.close(), sandbox.close()]);
  await nats.stop();
});
beforeEach(async () => {
  [asked, told] = [[], []];
  answer = (response) => events(response, [END]);
  turn = (question) => (question.kind === 'begin' ? { kind: 'go', spanId: 'span_1' } : { kind: 'noted' });
  gateway = createServer((incoming, response) => {
    void text(incoming).then((body) => {
      asked.push({
        url: incoming.url ?? '',
        headers: incoming.headers,
        body: JSON.parse(body) as Record<string, unknown>,
      });
      answer(response, asked.length);
    });
  });
  await new Promise<void>((resolve) => gateway.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(gateway.address() as AddressInfo).port}`;
  connections = new GatewayConnections({ url, apiKey: KEY, silenceMs: 2_000 });
  folder = mkdtempSync(join(tmpdir(), 'holdfast-door-'));
  const logger = createLogger({ service: 'spec', instance: 'spec', level: 'silent' });
  door = new ModelDoor('sesn_1', { bus: sandbox, connections, logger }, 500);
  await door.listen(folder);
  await work();
});
afterEach(async () => {
  await worker?.stop();
  await door.close();
  await connections.close();
  gateway.closeAllConnections();
  gateway.close();
  rmSync(folder, { recursive: true, force: true });
});

async function work(): Promise<void> {
  worker = session.reply<DoorQuestion, DoorAnswer>(modelDoorSubject('sesn_1'), {}, (question) => {
    told.push(question);
    return turn(question);
  });
  await session.flush();
}
function events(response: ServerResponse, parts: readonly object[]): void {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'x-litellm-call-id': 'call-7' });
  for (const part of parts) response.write(`data: ${JSON.stringify(part)}\n\n`);
  response.end('data: [DONE]\n\n');
}
function fail(response: ServerResponse, status: number, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify({ error: { message: `upstream says ${status}` } }));
}
interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly text: string;
}
/** As a harness asks, over the socket that the runner's relay leads to. */
function ask(path: string, body: unknown, options: { method?: string; headers?: Record<string, string> } = {}) {
  return new Promise<Answer>((resolve, reject) => {
    const asking = request(
      { socketPath: join(folder, 'door.sock'), path, method: options.method ?? 'POST', headers: options.headers ?? {} },
      (response) => {
        text(response).then(
          (said) => resolve({ status: response.statusCode ?? 0, headers: response.headers, text: said }),
          reject,
        );
      },
    );
    asking.on('error', reject);
    asking.end(typeof body === 'string' ? body : JSON.stringify(body));
  });
}
const kinds = (): string[] => told.map(({ kind }) => kind);
async function untilTold(kind: DoorQuestion['kind']): Promise<DoorQuestion | undefined> {
  for (const deadline = Date.now() + 5_000; !kinds().includes(kind) && Date.now() < deadline; ) await sleep(5);
  return told.find((question) => question.kind === kind);
}

describe('the model door', () => {
  it('passes a call on with the gateway’s key and nothing else of the sandbox’s headers, and measures it', async () => {
    const headers = { authorization: 'Bearer made-up', 'x-litellm-tags': 'a', 'anthropic-version': '2023-06-01' };
    const body = { model: 'm', stream: true, messages: [], tools: [{ type: 'function' }], api_base: 'http://evil' };
    const { status, text: said } = await ask(CHAT, body, { headers });
    expect(status).toBe(200);
    expect(said).toContain('[DONE]');
    expect(asked).toMatchObject([
      { url: CHAT, headers: { authorization: `Bearer ${KEY}`, 'anthropic-version': '2023-06-01' } },
    ]);
    expect(asked[0]?.headers).not.toHaveProperty('x-litellm-tags');
    expect(asked[0]?.body).not.toHaveProperty('api_base');
    expect(said).not.toContain(KEY);
    expect(told[0]).toEqual({ kind: 'begin', model: 'm', offersTools: true });
    expect(await untilTold('end')).toMatchObject({
      ...{ spanId: 'span_1', complete: true, finishReason: 'stop', gatewayCallId: 'call-7' },
      usage: { input_tokens: 3, output_tokens: 2 },
    });
  });

  it.each([
    ['GET', CHAT],
    ['GET', '/v1/models'],
    ['POST', '/key/generate'],
    ['POST', '/v1/chat/completions/../../key/generate'],
    ['POST', '//evil.example/v1/chat/completions'],
    ['POST', '/v1/embeddings'],
    ['DELETE', '/v1/responses'],
  ])('has no %s %s', async (method, path) => {
    expect((await ask(path, '{}', { method })).status).toBe(404);
    expect([asked, told]).toEqual([[], []]);
  });

  it.each([['no JSON'], ['[]'], ['{}']])('refuses what is no request: %s', async (body) => {
    expect((await ask(CHAT, body)).status).toBe(400);
    expect(asked).toEqual([]);
  });

  it('is shut without an open turn', async () => {
    await worker?.stop();
    worker = null;
    const { status, text: said } = await ask(CHAT, { model: 'm', messages: [] });
    expect([status, said]).toEqual([403, expect.stringContaining('no open turn')]);
    expect(asked).toEqual([]);
  });

  it('waits for a turn that is being taken over', async () => {
    await worker?.stop();
    const asking = ask(CHAT, { model: 'm', stream: true, messages: [] });
    await sleep(100);
    await work();
    expect((await asking).status).toBe(200);
  });

  it('tells a harness what the turn says of a failure, as final', async () => {
    answer = (response) => fail(response, 429, { 'retry-after': '7' });
    turn = (question) =>
      question.kind === 'begin'
        ? { kind: 'go', spanId: 'span_1' }
        : { kind: 'refuse', status: 400, message: 'out of budget' };
    const { status, headers, text: said } = await ask(CHAT, { model: 'm', messages: [] });
    expect([status, headers['x-should-retry']]).toEqual([400, 'false']);
    expect(JSON.parse(said)).toMatchObject({ error: { message: 'out of budget' } });
    expect(told.at(-1)).toMatchObject({ kind: 'failed', spanId: 'span_1', status: 429, retryAfter: '7' });
    const anthropic = await ask('/v1/messages', { model: 'm', messages: [] });
    expect(JSON.parse(anthropic.text)).toMatchObject({ type: 'error', error: { message: 'out of budget' } });
  });

  it('asks again where the turn says so, and the harness hears only how it ends', async () => {
    answer = (response, n) => (n < 3 ? fail(response, 500) : events(response, [END]));
    turn = (question) =>
      question.kind === 'failed'
        ? { kind: 'retry', afterMs: 5 }
        : question.kind === 'begin'
          ? { kind: 'go', spanId: 'span_1' }
          : { kind: 'noted' };
    expect((await ask(CHAT, { model: 'm', stream: true, messages: [] })).status).toBe(200);
    await untilTold('end');
    expect(kinds()).toEqual(['begin', 'failed', 'begin', 'failed', 'begin', 'end']);
  });

  it('tells of an answer that broke off, and passes on that it did', async () => {
    answer = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(`data: ${JSON.stringify({ choices: [{ delta: { content: 'half' } }] })}\n\n`);
      setTimeout(() => response.destroy(), 20);
    };
    await expect(ask(CHAT, { model: 'm', stream: true, messages: [] })).rejects.toThrow();
    expect(await untilTold('end')).toMatchObject({ complete: false });
  });

  it('cuts the gateway’s answer when the harness hangs up', async () => {
    let cut = false;
    answer = (response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write('data: {}\n\n');
      response.on('close', () => {
        cut = true;
      });
    };
    const asking = request({ socketPath: join(folder, 'door.sock'), path: CHAT, method: 'POST' });
    asking.on('error', () => undefined);
    asking.on('response', () => asking.destroy());
    asking.end(JSON.stringify({ model: 'm', stream: true, messages: [] }));
    expect(await untilTold('end')).toMatchObject({ complete: false });
    expect(cut).toBe(true);
  });

  it('bounds what a sandbox has under way at a time', async () => {
    const held: ServerResponse[] = [];
    answer = (response) => held.push(response);
    const body = { model: 'm', stream: true, messages: [] };
    const asking = Array.from({ length: 12 }, () => ask(CHAT, body));
    for (const deadline = Date.now() + 5_000; held.length < 8 && Date.now() < deadline; ) await sleep(5);
    await sleep(200);
    expect(held).toHaveLength(8);
    for (const response of held) events(response, [END]);
    const statuses = (await Promise.all(asking)).map(({ status }) => status);
    expect(statuses.filter((status) => status === 200)).toHaveLength(8);
    expect(statuses.filter((status) => status === 429)).toHaveLength(4);
  });
});
