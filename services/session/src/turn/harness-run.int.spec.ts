import { setTimeout as sleep } from 'node:timers/promises';
import type { Bus, Registration } from '@holdfast/bus';
import {
  AppError,
  type DoorAnswer,
  type DoorQuestion,
  type HarnessEvent,
  modelDoorSubject,
  type PermitBody,
  type PromptBody,
  type PromptReply,
  type SessionEvent,
} from '@holdfast/contracts';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from '@jest/globals';
import { idle, ofType, say, texts, types, World } from '../test/world.ts';

const RETRIES = 1;
const USAGE = { input_tokens: 3, output_tokens: 2, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 };
const ANSWERED: PromptReply = { kind: 'done', outcome: 'completed', raw: { digest: 'd'.repeat(64), sizeBytes: 9 } };
const READY: HarnessEvent = { type: 'session.ready', sessionId: 'ses_1', continuity: 'new' };
const DONE: HarnessEvent = { type: 'turn.finished', reason: 'end_turn', error: null };
const textOf = (text: string): HarnessEvent => ({ type: 'text.delta', messageId: 'm', text });
const startOf = (callId: string, asks = false): HarnessEvent => ({
  ...{ type: 'tool.started', callId, name: 'bash', input: { command: callId }, asks },
  native: { name: 'bash', input: { command: callId } },
});
const endOf = (callId: string): HarnessEvent => ({
  type: 'tool.finished',
  callId,
  isError: false,
  text: `ran ${callId}`,
});

/** What stands for one prompt's harness: it tells events, and asks the door. */
interface Harness {
  readonly body: PromptBody;
  /** Sends the next event, or one again by its number. */
  readonly tell: (event: HarnessEvent, sequence?: number) => void;
  readonly door: (question: DoorQuestion) => Promise<DoorAnswer>;
}

let world: World;
let sandbox: Bus;
let registrations: Registration[];
let prompts: PromptBody[];
let permits: PermitBody[];
let play: (harness: Harness) => Promise<PromptReply>;
beforeAll(async () => {
  world = await World.start();
  const settings = { HARNESSES: 'scripted@1', MODEL_MAX_RETRIES: RETRIES };
  await Promise.all([world.service('session-1', settings), world.service('session-2', settings)]);
  sandbox = await world.nats.connect('sandbox');
}, 180_000);
afterAll(async () => {
  await sandbox.close();
  await world.stop();
}, 60_000);
beforeEach(async () => {
  [prompts, permits] = [[], []];
  registrations = [
    sandbox.replyMany<PromptBody, PromptReply>('cmd.sandbox.*.link.prompt', {}, async (body, { subject }, send) => {
      prompts.push(body);
      const session = subject.split('.')[2]?.replace('sbx_', '') ?? '';
      let n = body.after;
      const tell = (event: HarnessEvent, sequence?: number): void => {
        n = sequence ?? n + 1;
        send({ kind: 'event', sequence: n, event });
      };
      const door = (question: DoorQuestion): Promise<DoorAnswer> =>
        sandbox.request<DoorAnswer>(modelDoorSubject(session), question);
      const alive = setInterval(() => send({ kind: 'alive' }), 500);
      try {
        send(await play({ body, tell, door }));
      } finally {
        clearInterval(alive);
      }
    }),
    sandbox.reply<PermitBody, null>('cmd.sandbox.*.link.permit', {}, (body) => {
      permits.push(body);
      return null;
    }),
  ];
  await sandbox.flush();
});
afterEach(async () => {
  for (const registration of registrations) await registration.stop();
});

async function newSession(): Promise<string> {
  const agent = await world.createAgent([{ type: 'agent_toolset_20260401' }], { harness: { type: 'scripted' } });
  return (await world.createSession({}, agent)).id;
}
async function turn(id: string, times = 1): Promise<SessionEvent[]> {
  await world.send(id, [say('hello')]);
  return world.until(id, idle(times));
}
const begin = (offersTools = true, model = 'demo'): DoorQuestion => ({ kind: 'begin', model, offersTools });
const spanOf = (answer: DoorAnswer): string | null => (answer.kind === 'go' ? answer.spanId : null);
const end = (spanId: string | null, toolCalls = 0): DoorQuestion => ({
  ...{ kind: 'end', spanId, model: 'demo', complete: true, usage: USAGE, costUsd: 0.5 },
  ...{ finishReason: 'stop', gatewayCallId: null, toolCalls },
});
/** What a client sees of a turn. */
const shown = (all: readonly SessionEvent[]): string[] =>
  types(all).filter((type) => /^(agent|span)\./.test(type) || type === 'session.error');

describe('what a harness does', () => {
  it('becomes the events of a step in their order, whichever road is faster', async () => {
    play = async ({ tell, door }) => {
      tell(READY);
      const first = spanOf(await door(begin()));
      tell(textOf('I look. '));
      // The harness is ahead of the door: its tool begins before the step's end is told.
      tell(startOf('a'));
      await sleep(100);
      void door(end(first, 1));
      // The door is ahead of the harness: the next step begins before the tool's result is told.
      const next = door(begin());
      await sleep(100);
      tell(endOf('a'));
      const second = spanOf(await next);
      tell(textOf('Done.'));
      void door(end(second));
      tell(DONE);
      return ANSWERED;
    };
    const id = await newSession();
    const all = await turn(id);
    const step = ['span.model_request_start', 'agent.message', 'span.model_request_end'];
    expect(shown(all)).toEqual([...step, 'agent.tool_use', 'agent.tool_result', ...step]);
    expect(texts(all)).toEqual(['I look. ', 'Done.']);
    const spans = ofType(all, 'span.model_request_start');
    expect(ofType(all, 'agent.message').map((event) => event.id)).toEqual(spans.map(({ data }) => data.message_id));
    expect(ofType(all, 'span.model_request_end').map(({ data }) => data.model_request_start_id)).toEqual(
      spans.map((span) => span.id),
    );
    expect(ofType(all, 'session.harness_finished')).toMatchObject([
      { data: { outcome: 'answered', raw: { size_bytes: 9 } } },
    ]);
    expect(prompts).toMatchObject([
      { after: 0, sessionId: null, content: [{ type: 'text', text: 'hello' }], harness: { model: 'demo' } },
    ]);
  });

  it('is metered and not shown beside its steps, and never with another model', async () => {
    const answers: DoorAnswer[] = [];
    play = async ({ tell, door }) => {
      tell(READY);
      answers.push(await door(begin(true, 'other')), await door(begin(false)));
      await door(end(null));
      const span = spanOf(await door(begin()));
      answers.push(await door(begin()));
      await door(end(null));
      tell(textOf('Done.'));
      void door(end(span));
      tell(DONE);
      return ANSWERED;
    };
    const id = await newSession();
    const all = await turn(id);
    expect(answers).toMatchObject([
      { kind: 'refuse', status: 403 },
      ...[
        { kind: 'go', spanId: null },
        { kind: 'go', spanId: null },
      ],
    ]);
    expect(ofType(all, 'session.model_side_call')).toHaveLength(2);
    expect(ofType(all, 'span.model_request_start')).toHaveLength(1);
    const { rows } = await world.pool.query<{ usage: object }>(
      "select view->'usage' as usage from sessions where id = $1",
      [id],
    );
    expect(rows[0]?.usage).toMatchObject({ input_tokens: 9, output_tokens: 6, x_cost_usd: 1.5 });
  });

  it('ends with the last of its model calls, whatever it says itself', async () => {
    const answers: DoorAnswer[] = [];
    play = async ({ tell, door }) => {
      tell(READY);
      for (let asked = 0; asked <= RETRIES; asked++) {
        const spanId = spanOf(await door(begin()));
        answers.push(
          await door({ kind: 'failed', spanId, status: 500, body: '{"error":{"message":"x"}}', retryAfter: null }),
        );
      }
      tell(textOf('An error, as if it were an answer.'));
      tell(DONE);
      return ANSWERED;
    };
    const all = await turn(await newSession());
    expect(answers).toMatchObject([
      { kind: 'retry' },
      { kind: 'refuse', status: 400, message: 'The model call was given up.' },
    ]);
    expect(ofType(all, 'session.error').map(({ data }) => data.error.retry_status.type)).toEqual([
      'retrying',
      'exhausted',
    ]);
    expect(ofType(all, 'session.status_idle')[0]?.data.stop_reason).toEqual({ type: 'retries_exhausted' });
  });

  it('is cut when it asks on and on after that', async () => {
    play = async ({ body, tell, door }) => {
      tell(READY);
      for (let asked = 0; !world.sandbox.cancelled.includes(body.callId) && asked < 100; asked++) {
        const spanId = spanOf(await door(begin()));
        await door({ kind: 'failed', spanId, status: 400, body: '{}', retryAfter: null });
        await sleep(20);
      }
      tell({ type: 'turn.finished', reason: 'cancelled', error: null });
      return { kind: 'done', outcome: 'cancelled', raw: null };
    };
    const all = await turn(await newSession());
    expect(ofType(all, 'session.error').length).toBeLessThan(6);
    expect(ofType(all, 'session.status_idle')[0]?.data.stop_reason).toEqual({ type: 'retries_exhausted' });
  });
});

describe('a prompt', () => {
  it('is taken over: under its id, with the next generation, from the newest event in the log', async () => {
    let taken = false;
    play = async ({ body, tell, door }) => {
      if (body.after === 0) {
        tell(READY);
        const span = spanOf(await door(begin()));
        tell(textOf('I look. '));
        void door(end(span, 1)).catch(() => undefined);
        tell(startOf('a'));
        tell(endOf('a'));
        tell(textOf('Half'));
        // This worker hears nothing more; another one takes the session.
        for (const deadline = Date.now() + 10_000; !taken && Date.now() < deadline; ) await sleep(10);
        return ANSWERED;
      }
      taken = true;
      tell(textOf('Half'), body.after + 1);
      const span = spanOf(await door(begin()));
      tell(textOf(' and half.'));
      void door(end(span));
      tell(DONE);
      return ANSWERED;
    };
    const id = await newSession();
    await world.send(id, [say('hello')]);
    await world.until(id, (all) => ofType(all, 'agent.tool_result').length === 1);
    await sleep(50);
    await world.stealLease(id);
    const all = await world.until(id, idle());
    expect(prompts.map(({ callId }) => callId)).toEqual([prompts[0]?.callId, prompts[0]?.callId]);
    expect(prompts.map(({ after }) => after)).toEqual([0, 4]);
    expect(prompts[1]?.generation).toBeGreaterThan(prompts[0]?.generation ?? 0);
    expect(texts(all)).toEqual(['I look. ', 'Half and half.']);
    expect(ofType(all, 'agent.tool_use')).toHaveLength(1);
    expect(ofType(all, 'agent.tool_result')).toHaveLength(1);
  });

  it('whose sandbox is lost ends with an explicit result, and the next one is another', async () => {
    let journal = 'journal';
    const usual = world.sandbox.ensure;
    world.sandbox.ensure = ({ sessionId }) => ({ sandboxId: `sbx_${sessionId}`, journalId: journal });
    play = async ({ body, tell, door }) => {
      if (body.journalId !== journal) throw new AppError('unavailable', 'sandbox.not-linked', 'It is gone.');
      tell(READY);
      if (journal !== 'journal') {
        tell(DONE);
        return ANSWERED;
      }
      void door(end(spanOf(await door(begin())), 1));
      tell(startOf('a'));
      await sleep(300);
      journal = 'another';
      throw new Error('the sandbox is lost');
    };
    const keep = world.sandbox.keep;
    world.sandbox.keep = () => {
      throw new AppError('not-found', 'sandbox.other-journal', 'The sandbox was lost.');
    };
    const id = await newSession();
    const all = await turn(id);
    expect(ofType(all, 'agent.tool_result')).toMatchObject([{ data: { is_error: true, outcome: 'unknown' } }]);
    expect(ofType(all, 'session.error')).toMatchObject([
      { data: { error: { message: expect.stringMatching(/sandbox was lost/) } } },
    ]);
    await turn(id, 2);
    expect(new Set(prompts.map(({ callId }) => callId)).size).toBe(2);
    // What was kept of its own session is older than the log (C2).
    expect(prompts.at(-1)).toMatchObject({ sessionId: null, journalId: 'another' });
    expect(prompts.at(-1)?.content[0]).toMatchObject({ text: expect.stringMatching(/Agent called bash: .*"a"/) });
    world.sandbox.ensure = usual;
    world.sandbox.keep = keep;
  });

  it('goes on with its own session in another sandbox where all that it did was kept', async () => {
    let journal = 'journal';
    const usual = world.sandbox.ensure;
    world.sandbox.ensure = ({ sessionId }) => ({ sandboxId: `sbx_${sessionId}`, journalId: journal });
    play = async ({ body, tell }) => {
      if (body.journalId !== journal) throw new AppError('unavailable', 'sandbox.not-linked', 'It is gone.');
      tell({ ...READY, continuity: body.sessionId === null ? 'new' : 'native' });
      tell(DONE);
      return ANSWERED;
    };
    const id = await newSession();
    await turn(id);
    journal = 'another';
    const all = await turn(id, 2);
    expect(prompts.at(-1)).toMatchObject({ sessionId: 'ses_1', journalId: 'another' });
    const taken = ofType(all, 'session.harness_progressed').flatMap(({ data }) => data.continuity ?? []);
    expect(taken).toEqual(['new', 'native']);
    world.sandbox.ensure = usual;
  });

  it('that no harness remembers the session of is sent as a new one, after the conversation so far', async () => {
    play = async ({ body, tell }) => {
      if (body.sessionId === 'ses_1') {
        tell({ type: 'turn.finished', reason: 'error', error: { code: 'session-lost', message: 'gone' } });
        return ANSWERED;
      }
      tell({ ...READY, sessionId: prompts.length === 1 ? 'ses_1' : 'ses_2' });
      tell(textOf(`answer ${prompts.length}`));
      tell(DONE);
      return ANSWERED;
    };
    const id = await newSession();
    await turn(id);
    const all = await turn(id, 2);
    expect(prompts.map(({ sessionId }) => sessionId)).toEqual([null, 'ses_1', null]);
    const [record, message] = prompts[2]?.content ?? [];
    expect(record).toMatchObject({ text: expect.stringMatching(/User: hello\n\nAgent: answer 1/) });
    expect(message).toEqual({ type: 'text', text: 'hello' });
    expect(texts(all)).toEqual(['answer 1', 'answer 3']);
    const taken = ofType(all, 'session.harness_progressed').flatMap(({ data }) => data.continuity ?? []);
    expect(taken).toEqual(['new', 'told']);
    expect(ofType(all, 'session.error')).toEqual([]);
  });

  it('waits for the client, and goes on where it was', async () => {
    play = async ({ body, tell }) => {
      if (body.after === 0) {
        tell(READY);
        tell(startOf('a', true));
      }
      for (const deadline = Date.now() + 10_000; permits.length === 0 && Date.now() < deadline; ) await sleep(10);
      tell(endOf('a'), 3);
      tell(DONE, 4);
      return ANSWERED;
    };
    const id = await newSession();
    const [use] = ofType(await turn(id), 'agent.tool_use');
    expect(use?.data).toMatchObject({ evaluated_permission: 'ask', harness: { call_id: 'a' } });
    await world.send(id, [{ type: 'user.tool_confirmation', tool_use_id: use?.id, result: 'allow' }]);
    const all = await world.until(id, idle(2));
    expect(permits).toMatchObject([{ toolCallId: 'a', allow: true, callId: prompts[0]?.callId }]);
    expect(prompts.map(({ after }) => after)).toEqual([0, 2]);
    expect(ofType(all, 'agent.tool_result')).toMatchObject([{ data: { tool_use_id: use?.id, is_error: false } }]);
  });
});
