import { closeSync, copyFileSync, fstatSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { HarnessEvent, HarnessStart } from '@holdfast/contracts';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { startDemoGateway } from '../../../../bin/src/demo-gateway/server.ts';
import { HarnessHost } from './harness-host.ts';

const BUILT = fileURLToPath(new URL('../../../scripted/dist/', import.meta.url));
const START: HarnessStart = {
  type: 'scripted',
  model: 'demo',
  system: null,
  tools: { bash: 'allow', '*': 'allow' },
  contextTokens: 100_000,
  outputTokens: 1_000,
};

let model: Server;
let folder: string;
let host: HarnessHost;
beforeAll(async () => {
  model = await startDemoGateway(0);
});
afterAll(() => {
  model.close();
  model.closeAllConnections();
});
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'holdfast-harness-'));
  for (const name of ['workspace', 'home', 'harnesses/scripted']) mkdirSync(join(folder, name), { recursive: true });
  for (const file of ['profile.mjs', 'main.mjs'])
    copyFileSync(join(BUILT, file), join(folder, 'harnesses/scripted', file));
  host = newHost();
});
afterEach(() => {
  host.kill();
  rmSync(folder, { recursive: true, force: true });
});

function newHost(): HarnessHost {
  return new HarnessHost({
    folder: join(folder, 'harnesses'),
    workspace: join(folder, 'workspace'),
    home: join(folder, 'home'),
    scratch: join(folder, 'home', '.holdfast'),
    alone: false,
    door: () => Promise.resolve(`http://127.0.0.1:${(model.address() as AddressInfo).port}`),
  });
}

interface Told {
  readonly events: HarnessEvent[];
  readonly rawBytes: number;
  readonly outcome: string;
}
async function prompt(
  text: string,
  options: {
    start?: Partial<HarnessStart>;
    sessionId?: string | null;
    on?: (event: HarnessEvent) => void;
    signal?: AbortSignal;
  } = {},
): Promise<Told> {
  const events: HarnessEvent[] = [];
  const { result, raw } = await host.prompt(
    {
      ...{ type: 'prompt', callId: 'p', generation: 1, after: 0, sessionId: options.sessionId ?? null },
      harness: { ...START, ...options.start },
      content: [{ type: 'text', text }],
    },
    { PATH: process.env['PATH'] ?? '', HOME: join(folder, 'home') },
    (event) => {
      events.push(event);
      options.on?.(event);
    },
    options.signal ?? new AbortController().signal,
  );
  const rawBytes = raw === null ? 0 : fstatSync(raw).size;
  if (raw !== null) closeSync(raw);
  return { events, rawBytes, outcome: result.outcome };
}
const textOf = (events: readonly HarnessEvent[]): string =>
  events.map((event) => (event.type === 'text.delta' ? event.text : '')).join('');
const ready = (events: readonly HarnessEvent[]) => events.find((event) => event.type === 'session.ready');
const finished = (events: readonly HarnessEvent[]) => events.at(-1);
const types = (events: readonly HarnessEvent[]): string[] => events.map(({ type }) => type);

describe('a harness over ACP', () => {
  it('tells text and tools in the platform’s words, and keeps its own lines', async () => {
    const { events, rawBytes, outcome } = await prompt('RUN[echo hi; pwd]');
    expect(types(events)).toEqual([
      'session.ready',
      'tool.started',
      'tool.finished',
      ...['text.delta', 'turn.finished'],
    ]);
    expect(events[1]).toMatchObject({ name: 'bash', input: { command: 'echo hi; pwd' }, asks: false });
    expect(events[2]).toMatchObject({ text: `hi\n${join(folder, 'workspace')}\n`, isError: false });
    expect(finished(events)).toEqual({ type: 'turn.finished', reason: 'end_turn', error: null });
    expect(outcome).toBe('completed');
    expect(rawBytes).toBeGreaterThan(500);
  });

  it('goes on with its session: while it runs, and from its own files when it was started anew', async () => {
    const first = ready((await prompt('hello')).events);
    const sessionId = first?.type === 'session.ready' ? first.sessionId : '';
    expect(first).toMatchObject({ continuity: 'new' });
    expect(ready((await prompt('again', { sessionId })).events)).toMatchObject({ sessionId, continuity: 'live' });
    host.kill();
    expect(ready((await prompt('and again', { sessionId })).events)).toMatchObject({ continuity: 'native' });
    const other = { start: { model: 'other' }, sessionId };
    expect(ready((await prompt('with another model', other)).events)).toMatchObject({ continuity: 'native' });
  });

  it('says that a session is lost before anything was sent', async () => {
    const { events } = await prompt('hello', { sessionId: 'none-such' });
    expect(events).toMatchObject([{ type: 'turn.finished', error: { code: 'session-lost' } }]);
  });

  it.each([
    [true, 'ran\n', false],
    [false, 'Not allowed.', true],
  ])('asks where the agent’s policy does, and heeds the answer: %s', async (allow, text, isError) => {
    const { events } = await prompt('RUN[echo ran]', {
      start: { tools: { bash: 'ask' } },
      on: (event) => {
        if (event.type === 'tool.started') host.permit(event.callId, allow);
      },
    });
    expect(events.find(({ type }) => type === 'tool.started')).toMatchObject({ asks: true });
    expect(events.find(({ type }) => type === 'tool.finished')).toMatchObject({ text, isError });
    expect(finished(events)).toMatchObject({ reason: 'end_turn', error: null });
  });

  it('ends its turn when it is cancelled, also while it asks', async () => {
    const cut = new AbortController();
    const { events, outcome } = await prompt('RUN[echo ran]', {
      start: { tools: { bash: 'ask' } },
      signal: cut.signal,
      on: ({ type }) => {
        if (type === 'tool.started') cut.abort('Cancelled.');
      },
    });
    expect([outcome, finished(events)]).toMatchObject(['cancelled', { reason: 'cancelled', error: null }]);
    expect(textOf((await prompt('hello')).events)).toMatch(/^You said: hello/);
  });

  it('that dies in the middle says so, and is started anew for the next prompt', async () => {
    const { events, outcome } = await prompt('RUN[kill -9 $PPID]');
    expect(finished(events)).toMatchObject({ error: { code: 'ended', message: expect.stringMatching(/SIGKILL/) } });
    expect(outcome).toBe('completed');
    expect(textOf((await prompt('hello')).events)).toMatch(/^You said: hello/);
  });

  it('that does not heed a cancel is killed', async () => {
    writeFileSync(
      join(folder, 'harnesses/scripted/main.mjs'),
      `import { createInterface } from 'node:readline';
       const answer = (id, result) => console.log(JSON.stringify({ jsonrpc: '2.0', id, result }));
       for await (const line of createInterface(process.stdin)) {
         const { id, method } = JSON.parse(line);
         if (method === 'initialize') answer(id, { protocolVersion: 1 });
         if (method === 'session/new') answer(id, { sessionId: 's' });
       }`,
    );
    const { events, outcome } = await prompt('hello', { signal: AbortSignal.timeout(300) });
    expect([outcome, finished(events)]).toMatchObject(['cancelled', { reason: 'cancelled' }]);
  }, 15_000);

  it('that is not there is named', async () => {
    const { events } = await prompt('hello', { start: { type: 'codex' } });
    expect(events).toMatchObject([
      { type: 'turn.finished', error: { code: 'not-installed', message: expect.stringMatching(/"codex"/) } },
    ]);
  });
});
