import { setTimeout as sleep } from 'node:timers/promises';
import { FILE_BLOBS, type FileResource, newId, type SessionEvent, streamOf } from '@holdfast/contracts';
import { derivedEventId, openBlobStore } from '@holdfast/event-store';
import { blobPlace } from '@holdfast/platform';
import { afterAll, afterEach, beforeAll, describe, expect, it } from '@jest/globals';
import type { SessionService } from '../host/session-service.ts';
import { DEFAULT_WORKSPACE } from '../migrations/bootstrap.ts';
import {
  idle,
  type ModelCall,
  ofType,
  ScriptedSandbox,
  say,
  streamAnswer,
  texts,
  toolset,
  types,
  World,
} from '../test/world.ts';

let world: World;
let service: SessionService;
beforeAll(async () => {
  world = await World.start();
  service = await world.service('session-1');
}, 180_000);
afterAll(async () => {
  await world.stop();
}, 60_000);
const usual = { ensure: null as ScriptedSandbox['ensure'] | null, run: null as ScriptedSandbox['run'] | null };
beforeAll(() => {
  Object.assign(usual, { ensure: world.sandbox.ensure, run: world.sandbox.run });
});
afterEach(() => {
  Object.assign(world.sandbox, usual, { reachable: true, outputs: { files: [], leftOut: [] } });
  world.model.answer = () => false;
});

/** Appends as another process does whose hint is lost. */
const appendUnseen = async (id: string, type: string, data: object): Promise<void> => {
  await world.log.append({
    appends: [
      {
        streamId: streamOf('session', id),
        workspaceId: DEFAULT_WORKSPACE,
        events: [{ id: derivedEventId(newId('command'), 0), type, data: { ...data } }],
      },
    ],
  });
};
const isSummary = (call: ModelCall): boolean =>
  JSON.stringify(call.body.messages.at(-1)?.content).startsWith('"Summarise');
const busy = (response: Parameters<World['model']['answer']>[1], headers: Record<string, string> = {}): true => {
  response.writeHead(503, { 'content-type': 'application/json', ...headers });
  response.end(JSON.stringify({ error: { message: 'busy' } }));
  return true;
};
const results = (all: readonly SessionEvent[]) => ofType(all, 'agent.tool_result');

describe('outputs', () => {
  const put = async (path: string, bytes: string) => {
    const blobs = await openBlobStore(blobPlace(world.blobs, FILE_BLOBS));
    return { path, ...(await blobs.put(DEFAULT_WORKSPACE, Buffer.from(bytes))) };
  };
  const filesOf = async (id: string): Promise<FileResource[]> =>
    (
      await world.pool.query<{ resource: FileResource }>(
        'select resource from files where scope_id = $1 order by created_at, id',
        [id],
      )
    ).rows.map(({ resource }) => resource);
  const kept = (all: readonly SessionEvent[]) => ofType(all, 'session.outputs_kept').map(({ data }) => data);
  const last = (all: readonly SessionEvent[], count: number): string[] => types(all).slice(-count);

  it('become files of the session before it is idle, each content at each place once', async () => {
    const [one, two] = [await put('report.md', '# one'), await put('data/a:b.csv', 'a,b')];
    world.sandbox.outputs = { files: [one, two], leftOut: [] };
    const session = await world.createSession();
    await world.send(session.id, [say('RUN[true]')]);
    const all = await world.until(session.id, idle());
    expect(last(all, 3)).toEqual(['session.outputs_kept', 'session.checkpointed', 'session.status_idle']);
    const files = await filesOf(session.id);
    expect(files).toMatchObject([
      { filename: 'report.md', mime_type: 'text/markdown', size_bytes: 5, x_path: 'report.md' },
      { filename: 'a_b.csv', mime_type: 'text/csv', size_bytes: 3, x_path: 'data/a:b.csv' },
    ]);
    expect(files.map(({ scope }) => scope)).toEqual(files.map(() => ({ id: session.id, type: 'session' })));
    expect(kept(all)).toMatchObject([{ files: [{ file_id: files[0]?.id }, { file_id: files[1]?.id }], left_out: [] }]);

    // What is there still is no news, not even when its file was deleted; what changed is.
    await world.command('file', files[0]?.id ?? '', 'delete', {});
    const changed = await put('data/a:b.csv', 'a,c');
    world.sandbox.outputs = { files: [one, changed], leftOut: [] };
    await world.send(session.id, [say('RUN[true]')]);
    const more = await world.until(session.id, idle(2));
    expect(kept(more).slice(1)).toMatchObject([{ files: [{ path: 'data/a:b.csv', digest: changed.digest }] }]);
    expect((await filesOf(session.id)).map(({ x_path }) => x_path)).toEqual(['data/a:b.csv', 'data/a:b.csv']);

    await world.send(session.id, [say('RUN[true]')]);
    expect(kept(await world.until(session.id, idle(3)))).toHaveLength(2);
  });

  it('are asked for when a call ran, also one that waited for the client or was interrupted, and never otherwise', async () => {
    const session = await world.createSession();
    const asked = async (message: string, times: number): Promise<number> => {
      const before = world.sandbox.harvests;
      await world.send(session.id, [say(message)]);
      await world.until(session.id, idle(times));
      return world.sandbox.harvests - before;
    };
    expect(await asked('hello', 1)).toBe(0);
    expect(await asked('RUN[true]', 2)).toBe(1);
    expect(await asked('ASK[lookup]', 3)).toBe(0);
    const before = world.sandbox.harvests;
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    await world.until(session.id, idle(4));
    world.sandbox.run = () => sleep(2_000).then(() => 'late');
    await world.send(session.id, [say('RUN[sleep]')]);
    await world.until(session.id, () => world.sandbox.executed.size > 0);
    await sleep(200);
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    await world.until(session.id, idle(5));
    expect(world.sandbox.harvests - before).toBe(1);
  });

  it('that cannot be kept are told once, and so is a sandbox that cannot be reached', async () => {
    const leftOut = [{ path: 'huge.bin', reason: 'it is larger than 5 bytes' }];
    world.sandbox.outputs = { files: [], leftOut };
    const session = await world.createSession();
    for (const times of [1, 2]) {
      await world.send(session.id, [say('RUN[true]')]);
      await world.until(session.id, idle(times));
    }
    world.sandbox.outputs = null;
    await world.send(session.id, [say('RUN[true]')]);
    const all = await world.until(session.id, idle(3));
    expect(ofType(all, 'session.error').map(({ data }) => data.error.message)).toEqual([
      expect.stringContaining('huge.bin: it is larger'),
      expect.stringContaining('cannot be reached'),
    ]);
    expect(kept(all)).toEqual([{ files: [], left_out: leftOut }]);
  }, 20_000);

  it('above what a workspace may hold are left out, and the turn ends all the same', async () => {
    const little = await world.service('session-little', { FILE_QUOTA_BYTES: 1 });
    await world.stopService(service);
    try {
      world.sandbox.outputs = { files: [await put('big.txt', 'too much')], leftOut: [] };
      const session = await world.createSession();
      await world.send(session.id, [say('RUN[true]')]);
      const all = await world.until(session.id, idle());
      expect(kept(all)).toMatchObject([
        { files: [], left_out: [{ path: 'big.txt', reason: expect.stringMatching(/1 bytes/) }] },
      ]);
      expect(await filesOf(session.id)).toEqual([]);
    } finally {
      service = await world.service('session-1');
      await world.stopService(little);
    }
  }, 30_000);

  it('are kept by whoever takes a turn over, and not twice', async () => {
    const file = await put('over.txt', 'taken over');
    world.sandbox.outputs = { files: [file], leftOut: [] };
    world.model.answer = async (call, response) => {
      if (!call.body.messages.some(({ role }) => role === 'tool')) return false;
      if (!JSON.stringify(call.body).includes('slow')) return false;
      await sleep(1_500);
      return streamAnswer(response, { text: 'done' });
    };
    const session = await world.createSession();
    await world.send(session.id, [say('slow RUN[true]')]);
    await world.until(session.id, (all) => results(all).length > 0);
    await world.stealLease(session.id);
    const all = await world.until(session.id, idle(), 20_000);
    expect(last(all, 3)).toEqual(['session.outputs_kept', 'session.checkpointed', 'session.status_idle']);
    expect(await filesOf(session.id)).toHaveLength(1);
  }, 30_000);
});

describe('parallel calls of one model step', () => {
  const three = ['a', 'b', 'c'].map((name) => ({ name: 'bash', input: { command: `echo ${name}` } }));

  it('run side by side, each once, and the model gets all results', async () => {
    let most = 0;
    let now = 0;
    world.sandbox.run = async (body) => {
      most = Math.max(most, ++now);
      await sleep(100);
      now--;
      return `did ${JSON.stringify(body.input['command'])}`;
    };
    world.model.answer = (call, response) =>
      call.body.messages.some(({ role }) => role === 'tool')
        ? streamAnswer(response, { text: JSON.stringify(call.body.messages.filter(({ role }) => role === 'tool')) })
        : streamAnswer(response, { calls: three });
    const session = await world.createSession();
    await world.send(session.id, [say('go')]);
    const all = await world.until(session.id, idle());
    expect(most).toBe(3);
    for (const use of ofType(all, 'agent.tool_use')) expect(world.sandbox.executed.get(use.id)).toBe(1);
    for (const name of ['a', 'b', 'c']) expect(texts(all)[0]).toContain(`echo ${name}`);
  });

  it('are all stopped by an interrupt, in the sandbox before the log says so (T1)', async () => {
    world.sandbox.run = () => sleep(3_000).then(() => 'too late');
    world.model.answer = (_call, response) => streamAnswer(response, { calls: three });
    const session = await world.createSession();
    await world.send(session.id, [say('go')]);
    const uses = ofType(await world.until(session.id, () => world.sandbox.executed.size > 0 && true), 'agent.tool_use');
    await world.until(session.id, () => uses.every(({ id }) => world.sandbox.executed.has(id)));
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    const all = await world.until(session.id, idle());
    expect(results(all).map(({ data }) => data.outcome)).toEqual(['cancelled', 'cancelled', 'cancelled']);
    for (const { id } of uses) expect(world.sandbox.cancelled).toContain(id);
  });
});

describe('a model that thinks', () => {
  it('is shown what it thought, by every replica, and a replica that never saw it live gives it back', async () => {
    const agent = await world.createAgent(toolset(['bash']), { model: 'demo-thinking' });
    const session = await world.createSession({}, agent);
    await world.send(session.id, [say('THINK[a list might help] RUN[echo found]')]);
    const asked = await world.until(session.id, idle());
    expect(types(asked).filter((type) => type.startsWith('agent.'))).toEqual(['agent.thinking', 'agent.tool_use']);
    expect(ofType(asked, 'agent.thinking')[0]?.data.blocks).toEqual([
      { type: 'thinking', thinking: 'a list might help', signature: expect.any(String) },
    ]);
    // The demo model refuses the next request unless its thinking is in it as it signed it.
    await world.stopService(service);
    service = await world.service('session-1');
    const id = ofType(asked, 'agent.tool_use')[0]?.id;
    await world.send(session.id, [{ type: 'user.tool_confirmation', tool_use_id: id, result: 'allow' }]);
    const all = await world.until(session.id, idle(2));
    expect(ofType(all, 'session.error')).toEqual([]);
    expect(texts(all)[0]).toContain('ran bash echo found');
    expect(ofType(all, 'span.model_request_end').at(-1)?.data.model_usage.cache_read_input_tokens).toBeGreaterThan(0);
  });

  it('may refuse, which ends the turn with its reason', async () => {
    const session = await world.createSession({}, await world.createAgent(toolset(), { model: 'demo-thinking' }));
    await world.send(session.id, [say('REFUSE[not that]')]);
    const all = await world.until(session.id, idle());
    const refusal = { category: 'general_harms', explanation: 'not that' };
    expect(all.at(-1)?.data).toEqual({ stop_reason: { type: 'refusal' }, refusal });
  });
});

describe('an interrupt', () => {
  it('while a sandbox is being started: the call is never sent, also when the session goes on', async () => {
    world.sandbox.ensure = async (body) => {
      await sleep(400);
      return { sandboxId: `sbx_${body.sessionId}`, journalId: 'journal' };
    };
    const session = await world.createSession();
    await world.send(session.id, [say('RUN[echo never]')]);
    const [use] = ofType(
      await world.until(session.id, (all) => types(all).includes('agent.tool_use')),
      'agent.tool_use',
    );
    await world.send(session.id, [{ type: 'user.interrupt' }, say('SLOW[8]')]);
    const all = await world.until(session.id, idle());
    expect(results(all)[0]?.data).toMatchObject({ outcome: 'cancelled' });
    expect(world.sandbox.executed.has(use?.id ?? '')).toBe(false);
  });

  it('while a retry is waited for: no further call, and what is queued is answered', async () => {
    let calls = 0;
    world.model.answer = (call, response) => {
      if (JSON.stringify(call.body.messages).includes('later')) return false;
      calls++;
      return busy(response, { 'retry-after': '30' });
    };
    const session = await world.createSession();
    await world.send(session.id, [say('busy')]);
    await world.until(session.id, (all) => types(all).includes('session.status_rescheduled'));
    await world.send(session.id, [say('and later')]);
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    const all = await world.until(session.id, idle());
    expect([calls, texts(all).length]).toEqual([1, 1]);
  });

  it('whose hint was lost is found within a second or two', async () => {
    const session = await world.createSession();
    await world.send(session.id, [say('SLOW[100]')]);
    await world.until(session.id, (all) => types(all).includes('span.model_request_start'));
    const atMs = Date.now();
    await appendUnseen(session.id, 'user.interrupt', {});
    await world.until(session.id, idle());
    expect(Date.now() - atMs).toBeLessThan(2_500);
  });

  it('that cannot reach the sandbox says that the outcome is unknown', async () => {
    const session = await world.createSession();
    world.sandbox.run = () => sleep(1_000).then(() => 'x');
    await world.send(session.id, [say('RUN[sleep 1]')]);
    await world.until(session.id, (all) =>
      ofType(all, 'agent.tool_use').some(({ id }) => world.sandbox.executed.has(id)),
    );
    world.sandbox.reachable = false;
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    const all = await world.until(session.id, idle());
    expect(results(all)[0]?.data).toMatchObject({ outcome: 'unknown', is_error: true });
  });
});

describe('a retry of a model call', () => {
  it('is not hurried by a takeover', async () => {
    const asked: number[] = [];
    world.model.answer = (call, response) => {
      asked.push(call.atMs);
      return asked.length === 1 ? busy(response, { 'retry-after': '2' }) : false;
    };
    const session = await world.createSession();
    await world.send(session.id, [say('busy once')]);
    await world.until(session.id, (all) => types(all).includes('session.status_rescheduled'));
    await world.stealLease(session.id);
    const all = await world.until(session.id, idle());
    expect(ofType(all, 'session.turn_started').map(({ data }) => data.takeover)).toEqual([false, true]);
    expect((asked[1] ?? 0) - (asked[0] ?? 0)).toBeGreaterThanOrEqual(1_950);
    expect(asked).toHaveLength(2);
  });
});

describe('a compaction', () => {
  /** A tool step whose usage is above MODEL_CONTEXT_TOKENS, so that a compaction is due before the next call. */
  const full = (
    call: ModelCall,
    response: Parameters<World['model']['answer']>[1],
    answerSummary: () => boolean,
  ): boolean => {
    if (isSummary(call)) return answerSummary();
    if (call.body.messages.some(({ role }) => role === 'tool') || /Summary of/.test(JSON.stringify(call.body.messages)))
      return streamAnswer(response, { text: 'went on' });
    return streamAnswer(response, {
      calls: [{ name: 'bash', input: { command: 'echo x' } }],
      usage: { prompt_tokens: 200_000, completion_tokens: 10 },
    });
  };

  it('is tried again like any model call, then the turn goes on from the summary', async () => {
    let summaries = 0;
    world.model.answer = (call, response) =>
      full(call, response, () =>
        ++summaries === 1 ? busy(response) : streamAnswer(response, { text: 'what was said' }),
      );
    const session = await world.createSession();
    await world.send(session.id, [say('go')]);
    const all = await world.until(session.id, idle());
    expect(summaries).toBe(2);
    expect(ofType(all, 'session.error').map(({ data }) => data.error.retry_status.type)).toEqual(['retrying']);
    expect(ofType(all, 'agent.thread_context_compacted').map(({ data }) => data.summary)).toEqual(['what was said']);
    expect(texts(all)).toEqual(['went on']);
    expect(JSON.stringify(world.model.calls.at(-1)?.body.messages)).toContain('what was said');
  });

  it('is cut by an interrupt at once', async () => {
    world.model.answer = (call, response) => full(call, response, () => true);
    const session = await world.createSession();
    await world.send(session.id, [say('go')]);
    await world.until(session.id, () =>
      world.model.calls.some((call) => isSummary(call) && call.cutAtMs === null && call === world.model.calls.at(-1)),
    );
    const atMs = Date.now();
    await world.send(session.id, [{ type: 'user.interrupt' }]);
    const all = await world.until(session.id, idle());
    await sleep(50);
    expect((world.model.calls.at(-1)?.cutAtMs ?? Number.POSITIVE_INFINITY) - atMs).toBeLessThan(500);
    expect(types(all)).not.toContain('agent.thread_context_compacted');
  });

  it('of more than the model can read leaves out the oldest part and says so', async () => {
    const sizes: number[] = [];
    world.model.answer = (call, response) =>
      full(call, response, () => {
        sizes.push(call.body.messages.length);
        if (call.body.messages.length <= 4) return streamAnswer(response, { text: 'the end of it' });
        response.writeHead(400, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ error: { message: 'maximum context length exceeded' } }));
        return true;
      });
    const session = await world.createSession();
    for (let n = 1; n <= 6; n++) {
      const before = world.model.answer;
      if (n < 6) world.model.answer = (_call, response) => streamAnswer(response, { text: `answer ${n}` });
      await world.send(session.id, [say(`message ${n}`)]);
      await world.until(session.id, idle(n));
      world.model.answer = before;
    }
    const all = await world.events(session.id);
    expect(sizes.length).toBeGreaterThan(1);
    const [compacted] = ofType(all, 'agent.thread_context_compacted');
    expect(compacted?.data.summary).toMatch(/^\[The oldest part.*\]\nthe end of it$/s);
    expect(texts(all).at(-1)).toBe('went on');
  });
});

describe('a fault of the platform', () => {
  it('ends the turn with an error instead of taking it over for ever; what is queued has its own turn', async () => {
    const session = await world.createSession();
    const lost = { type: 'x_blob', digest: 'a'.repeat(64), size_bytes: 70_000 };
    await world.send(session.id, [say('SLOW[3]')]);
    await world.send(session.id, [{ type: 'user.message', content: [lost] }, say('after it')]);
    const all = await world.until(session.id, idle());
    expect(ofType(all, 'session.error').map(({ data }) => data.error)).toMatchObject([
      { type: 'unknown_error', retry_status: { type: 'exhausted' } },
      { type: 'unknown_error', retry_status: { type: 'exhausted' } },
    ]);
    await sleep(1_500);
    expect(await world.events(session.id)).toHaveLength(all.length);
    expect(ofType(all, 'session.turn_started').map(({ data }) => data.takeover)).toEqual([false, false]);
  });
});

describe('capacity', () => {
  it('a message to a full process waits, is taken at once when a turn ends, and by any process that has room', async () => {
    await world.stopService(service);
    const full = await world.service('session-full', { MAX_TURNS: 1 });
    const [a, b, c] = await Promise.all([world.createSession(), world.createSession(), world.createSession()]);
    await world.send(a.id, [say('SLOW[6]')]);
    await world.send(b.id, [say('hello')]);
    expect(types(await world.events(b.id)).at(-1)).toBe('session.status_running');
    const ended = ofType(await world.until(a.id, idle()), 'session.status_idle')[0]?.recordedAt ?? '';
    const answered = ofType(await world.until(b.id, idle()), 'session.status_idle')[0]?.recordedAt ?? '';
    expect(Date.parse(answered) - Date.parse(ended)).toBeLessThan(400);
    await world.send(a.id, [say('SLOW[30]')]);
    service = await world.service('session-1');
    await world.send(c.id, [say('hello')]);
    await world.until(c.id, idle(), 2_000);
    expect(types(await world.events(a.id)).at(-1)).not.toBe('session.status_idle');
    await world.stopService(full);
    await world.until(a.id, idle(2));
  }, 40_000);

  it('an interrupt of a session that waits for room ends it when its turn comes', async () => {
    await world.stopService(service);
    const full = await world.service('session-full', { MAX_TURNS: 1 });
    const [a, b] = await Promise.all([world.createSession(), world.createSession()]);
    await world.send(a.id, [say('SLOW[8]')]);
    await world.send(b.id, [say('hello')]);
    await world.send(b.id, [{ type: 'user.interrupt' }]);
    const all = await world.until(b.id, idle());
    service = await world.service('session-1');
    await world.stopService(full);
    expect(texts(all)).toEqual([]);
    expect(ofType(all, 'session.message_processed')).toHaveLength(1);
  }, 30_000);
});

describe('what survives a restart of every process', () => {
  it('a call that waits for a confirmation, and one that waits for its result', async () => {
    const session = await world.createSession({}, await world.createAgent(toolset(['bash'])));
    await world.send(session.id, [say('RUN[echo one] ASK[lookup]')]);
    const [use] = ofType(await world.until(session.id, idle()), 'agent.tool_use');
    await world.stopService(service);
    service = await world.service('session-1');
    await world.send(session.id, [{ type: 'user.tool_confirmation', tool_use_id: use?.id, result: 'allow' }]);
    const [own] = ofType(await world.until(session.id, idle(2)), 'agent.custom_tool_use');
    expect(world.sandbox.executed.get(use?.id ?? '')).toBe(1);
    await world.stopService(service);
    service = await world.service('session-1');
    await world.send(session.id, [
      { type: 'user.custom_tool_result', custom_tool_use_id: own?.id, content: [{ type: 'text', text: '42' }] },
    ]);
    expect(texts(await world.until(session.id, idle(3))).at(-1)).toMatch(/42$/);
  }, 30_000);
});

describe('races', () => {
  it('a message and an archive at once: either is refused, or the message was answered first', async () => {
    const other = await world.service('session-2');
    const outcomes = new Set<string>();
    for (let n = 0; n < 15; n++) {
      const session = await world.createSession();
      const [sent, archived] = await Promise.allSettled([
        world.send(session.id, [say('hello')]),
        world.command('session', session.id, 'archive', {}),
      ]);
      outcomes.add(`${sent.status} ${archived.status}`);
      expect([sent, archived].some(({ status }) => status === 'fulfilled')).toBe(true);
      if (sent.status === 'fulfilled') {
        const all = await world.until(session.id, idle());
        expect(texts(all)).toHaveLength(1);
      } else expect(sent.reason).toMatchObject({ code: 'session.archived' });
    }
    expect(outcomes.size).toBeGreaterThan(0);
    await world.stopService(other);
  }, 30_000);

  it('many messages through two processes: each once, each answered, in the order of the log', async () => {
    const other = await world.service('session-2');
    const session = await world.createSession();
    await Promise.all(Array.from({ length: 24 }, (_, n) => world.send(session.id, [say(`m${n}`)])));
    const all = await world.until(session.id, (now) => texts(now).length === 24 && idle()(now));
    const sent = ofType(all, 'user.message').map(({ data }) => (data.content[0] as { text: string }).text);
    expect(new Set(sent).size).toBe(24);
    expect(texts(all).map((text) => text.split('\n')[0])).toEqual(sent.map((text) => `You said: ${text}`));
    await world.stopService(other);
  }, 30_000);
});

it('a bound on steps ends the turn by an event (T6)', async () => {
  await world.stopService(service);
  service = await world.service('session-1', { TURN_MAX_MODEL_STEPS: 2 });
  const session = await world.createSession();
  await world.send(session.id, [say('RUN[echo 1] RUN[echo 2] RUN[echo 3]')]);
  const all = await world.until(session.id, idle());
  expect(ofType(all, 'agent.tool_use')).toHaveLength(2);
  expect(ofType(all, 'session.error')[0]?.data).toMatchObject({ limit: 'model_steps' });
}, 20_000);
