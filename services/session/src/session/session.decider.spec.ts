import {
  type AgentSnapshot,
  type ClientEventParam,
  type MountedFile,
  resolveTools,
  type SessionEvent,
} from '@holdfast/contracts';
import { specification } from '@holdfast/testing';
import { describe, expect, it } from '@jest/globals';
import {
  advance,
  afterClientEvents,
  answerModelRequest,
  beginModelRequest,
  cutTurn,
  type Draft,
  decideAddResource,
  decideArchive,
  decideClientEvent,
  decideCreate,
  decideDelete,
  decideFork,
  decideRemoveResource,
  decideUpdate,
  detachWorker,
  endPrompt,
  type Fork,
  failModelRequest,
  finishPrompt,
  giveUpCheckpoint,
  type IdSource,
  INTERRUPTED,
  limitReached,
  type ModelAnswer,
  nextStep,
  recordCheckpoint,
  recordRestore,
  restoreNote,
  startTurn,
  type TurnBounds,
} from './session.decider.ts';
import {
  blockedCalls,
  evolve,
  hasUnkeptFiles,
  initialState,
  runnableCalls,
  type SessionState,
} from './session.state.ts';

/** A draft of the history, with the time at which it was stored (milliseconds since the session began). */
type Past = Draft & { readonly atMs?: number };
const BEGAN = Date.parse('2026-01-01T00:00:00Z');
const at = (ms: number): string => new Date(BEGAN + ms).toISOString();
const given = specification<SessionState, Past, SessionEvent>({
  initialState,
  evolve,
  store: ({ atMs, ...draft }, version) =>
    ({
      ...draft,
      position: String(version),
      workspaceId: 'wrkspc_a',
      streamId: 'session-sesn_a',
      version,
      schemaVersion: 1,
      metadata: {},
      recordedAt: at(atMs ?? version),
    }) as SessionEvent,
});
/** `id-1`, `id-2`, … of one decision. */
const ids = (): IdSource => {
  let n = 0;
  return () => `sevt_${++n}`;
};
const types = (drafts: readonly Draft[]): string[] => drafts.map(({ type }) => type);

const agent = {
  id: 'agent_a',
  version: 1,
  model: { id: 'demo', effort: { type: 'high' } },
  tools: resolveTools([{ type: 'agent_toolset_20260401' }]),
  harness: { type: 'native' },
} as unknown as AgentSnapshot;
const BOUNDS: TurnBounds = { modelSteps: 3, wallTimeMs: 60_000, outputTokens: 100, toolTimeMs: 10_000 };
const CONTEXT = 1_000;
const usage = (tokens: Partial<{ input: number; output: number }> = {}) => ({
  input_tokens: tokens.input ?? 1,
  output_tokens: tokens.output ?? 1,
  cache_creation_input_tokens: 0,
  cache_read_input_tokens: 0,
});
const text = (words: string) => [{ type: 'text' as const, text: words }];

// What a session's log is made of.
const created: Past = {
  id: 'sevt_created',
  type: 'session.created',
  data: { agent, environment_id: 'env_a', title: null, metadata: {}, context_key: null },
};
const message = (id: string, rest: { steer?: boolean; atMs?: number } = {}): Past => ({
  id,
  type: 'user.message',
  data: { content: text(id), ...(rest.steer === undefined ? {} : { steer: rest.steer }) },
  ...(rest.atMs === undefined ? {} : { atMs: rest.atMs }),
});
const started = (generation = 1, rest: { takeover?: boolean; atMs?: number } = {}): Past => ({
  id: `sevt_started_${generation}`,
  type: 'session.turn_started',
  data: { turn_id: 'turn_a', generation, worker: 'w', takeover: rest.takeover ?? false },
  ...(rest.atMs === undefined ? {} : { atMs: rest.atMs }),
});
const running: Past = { id: 'sevt_running', type: 'session.status_running', data: {} };
const processed = (id: string, steer?: boolean): Past => ({
  id: `sevt_processed_${id}`,
  type: 'session.message_processed',
  data: {
    event_id: id,
    message: { type: 'user.message', content: text(id), ...(steer === undefined ? {} : { steer }) },
  },
});
const asked = (id = 'sevt_request'): Past => ({
  id,
  type: 'span.model_request_start',
  data: { model: 'demo', message_id: 'sevt_message' },
});
/** What calls did to files is kept. */
const kept = (throughVersion = 1_000): Past => ({
  id: 'sevt_kept',
  type: 'session.checkpointed',
  data: { checkpoint_id: 'ckpt_a', through_version: throughVersion },
});
const answered = (tokens: Parameters<typeof usage>[0] = {}, rest: { isError?: boolean; atMs?: number } = {}): Past => ({
  id: 'sevt_end',
  type: 'span.model_request_end',
  data: {
    model_request_start_id: 'sevt_request',
    is_error: rest.isError ?? false,
    model_usage: usage(tokens),
    cost_usd: null,
    finish_reason: null,
    gateway_call_id: null,
  },
});
const use = (id: string, permission: 'allow' | 'ask' = 'allow', atMs?: number): Past => ({
  id,
  type: 'agent.tool_use',
  data: { name: 'bash', input: {}, evaluated_permission: permission },
  ...(atMs === undefined ? {} : { atMs }),
});
const customUse = (id: string): Past => ({ id, type: 'agent.custom_tool_use', data: { name: 'lookup', input: {} } });
const result = (id: string, atMs?: number, outcome: 'completed' | 'denied' = 'completed'): Past => ({
  id: `sevt_result_${id}`,
  type: 'agent.tool_result',
  data: { tool_use_id: id, content: text('ok'), is_error: false, outcome, full_output: null },
  ...(atMs === undefined ? {} : { atMs }),
});
const idle = (stop: 'end_turn' | string[] = 'end_turn', atMs?: number): Past => ({
  id: 'sevt_idle',
  type: 'session.status_idle',
  data: { stop_reason: stop === 'end_turn' ? { type: stop } : { type: 'requires_action', event_ids: stop } },
  ...(atMs === undefined ? {} : { atMs }),
});
const interrupt: Past = { id: 'sevt_interrupt', type: 'user.interrupt', data: {} };
const attached = (journal: string): Past => ({
  id: `sevt_attached_${journal}`,
  type: 'session.sandbox_attached',
  data: { sandbox_id: 'sbx_a', journal_id: journal },
});
/** A turn that has taken up message `a` and asked the model. */
const asking = [created, message('a'), started(), running, processed('a'), asked()];
const failed = (attempt: number, retryMs: number): Past[] => [
  answered({}, { isError: true }),
  {
    id: `sevt_error_${attempt}`,
    type: 'session.error',
    data: { error: { type: 'model_overloaded_error', message: 'busy', retry_status: { type: 'retrying' } } },
  },
  { id: `sevt_again_${attempt}`, type: 'session.status_rescheduled', data: { attempt, retry_at: at(retryMs) } },
];

const stored = (state: SessionState, event: ClientEventParam): Draft => {
  const answer = decideClientEvent(state, event, ids());
  if ('repeated' in answer) throw new Error('it was a repeat');
  return answer.stored;
};
const step = (state: SessionState, nowMs = 100) => nextStep(state, BOUNDS, CONTEXT, BEGAN + nowMs);
const goOn =
  (first: readonly Draft[] = [], nowMs = 100) =>
  (state: SessionState): readonly Draft[] =>
    advance(state, first, { bounds: BOUNDS, contextLimitTokens: CONTEXT, nowMs: BEGAN + nowMs, worker: 'w' }, ids())
      .drafts;
const whatFollows =
  (what: { interrupted?: boolean; answered?: boolean } = {}) =>
  (state: SessionState): readonly Draft[] => {
    const follows = afterClientEvents(state, what.interrupted ?? false, what.answered ?? false, ids());
    return follows.kind === 'settle' ? follows.drafts : [];
  };
const follows = (state: SessionState): string => afterClientEvents(state, false, false, ids()).kind;

describe('files of a session', () => {
  const made = '2026-11-24T12:00:00.000Z';
  const file = (id: string, mount_path: string): MountedFile => ({
    ...{ id, type: 'file', file_id: `file_${id}`, mount_path, created_at: made, updated_at: made },
    ...{ digest: 'd'.repeat(64), size_bytes: 1 },
  });
  const uploads = '/mnt/session/uploads';
  const held = { ...created, data: { ...created.data, resources: [file('one', `${uploads}/a/b`)] } } as Past;

  it('are given to it, taken away, and each is known whole', () => {
    given(created)
      .when((state) => decideAddResource(state, file('one', `${uploads}/a`), ids()))
      .then({ type: 'session.resources_changed', id: 'sevt_1', data: { resources: [file('one', `${uploads}/a`)] } });
    given(held)
      .when((state) => decideAddResource(state, file('two', `${uploads}/a/b.txt`), ids()))
      .then({
        ...{ type: 'session.resources_changed', id: 'sevt_1' },
        data: { resources: [file('one', `${uploads}/a/b`), file('two', `${uploads}/a/b.txt`)] },
      });
    given(held)
      .when((state) => decideRemoveResource(state, 'one', ids()))
      .then({ type: 'session.resources_changed', id: 'sevt_1', data: { resources: [] } });
    given(held)
      .when((state) => decideRemoveResource(state, 'two', ids()))
      .thenRefused('resource.not-found');
  });

  it.each(['a/b', 'a/b/c', 'a'])('do not lie in the way of one another: %s', (path) => {
    given(held)
      .when((state) => decideAddResource(state, file('two', `${uploads}/${path}`), ids()))
      .thenRefused('resource.path-taken');
  });

  it('are not for a session whose tools a worker runs', () => {
    const own = { ...created, data: { ...created.data, self_hosted: true } } as Past;
    given(own)
      .when((state) => decideAddResource(state, file('one', `${uploads}/a`), ids()))
      .thenRefused('session.no-mounts');
  });

  it('are so many and no more', () => {
    const many = Array.from({ length: 101 }, (_, n) => file(`n${n}`, `${uploads}/n${n}`));
    const facts = {
      agent,
      environmentId: 'env_a',
      title: null,
      metadata: {},
      contextKey: null,
      resources: many,
      selfHosted: false,
    };
    given()
      .when((state) => decideCreate(state, facts, ids()))
      .thenRefused('resource.count');
  });
});

describe('a session', () => {
  it('is created once', () => {
    const facts = {
      agent,
      environmentId: 'env_a',
      title: null,
      metadata: {},
      contextKey: null,
      resources: [],
      selfHosted: false,
    };
    given()
      .when((state) => decideCreate(state, facts, ids()))
      .then({ ...created, id: 'sevt_1' });
    given(created)
      .when((state) => decideCreate(state, facts, ids()))
      .thenRefused('session.exists');
    given()
      .when((state) => decideCreate(state, { ...facts, contextKey: 'k', selfHosted: true }, ids()))
      .thenRefused('session.no-context');
    const coder = { ...agent, harness: { type: 'opencode' } };
    given()
      .when((state) => decideCreate(state, { ...facts, agent: coder, selfHosted: true }, ids()))
      .thenRefused('session.no-harness');
  });

  it('with a harness is not forked to where a worker runs the tools', () => {
    const coder = { ...agent, harness: { type: 'opencode' } };
    const fork: Fork = {
      from: { session_id: 'sesn_a', root_session_id: 'sesn_a', event_id: 'sevt_created', version: 1 },
      ...{ agent: null, environmentId: 'env_b', title: null, metadata: null },
      selfHosted: true,
      files: null,
    };
    given({ ...created, data: { ...created.data, agent: coder } } as Past)
      .when((state) => decideFork(state, fork, ids()))
      .thenRefused('session.no-harness');
    given({ ...created, data: { ...created.data, agent: coder } } as Past)
      .when((state) => decideFork(state, { ...fork, agent }, ids()))
      .thenState((state) => expect(state).toMatchObject({ selfHosted: true, status: 'idle' }));
  });

  it('does not exist before it is created and after it is deleted, and accepts nothing once it is archived', () => {
    const say = (state: SessionState) => stored(state, { type: 'user.message', content: text('x') });
    given().when(say).thenRefused('session.not-found');
    given(created, { id: 'd', type: 'session.deleted', data: {} }).when(say).thenRefused('session.not-found');
    given(created, { id: 't', type: 'session.status_terminated', data: {} }).when(say).thenRefused('session.archived');
  });

  it('is archived and deleted when it is idle only: not while it runs, waits for a retry, or just began', () => {
    for (const history of [asking, [...asking, ...failed(1, 500)]]) {
      given(...history)
        .when((state) => decideArchive(state, ids()))
        .thenRefused('session.running');
      given(...history)
        .when((state) => decideDelete(state, ids()))
        .thenRefused('session.running');
    }
    given(created)
      .when((state) => decideArchive(state, ids()))
      .then({ id: 'sevt_1', type: 'session.status_terminated', data: {} });
    given(created, { id: 't', type: 'session.status_terminated', data: {} })
      .when((state) => decideArchive(state, ids()))
      .thenNothing();
    given(created, { id: 't', type: 'session.status_terminated', data: {} })
      .when((state) => decideDelete(state, ids()))
      .then({ id: 'sevt_1', type: 'session.deleted', data: {} });
  });

  it('closes the calls that wait when it is archived, so that the log stays replayable', () => {
    given(...asking, answered(), use('call', 'ask'), customUse('own'), idle(['call', 'own']))
      .when((state) => decideArchive(state, ids()))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['agent.tool_result', 'user.custom_tool_result', 'session.status_terminated']);
        expect(state).toMatchObject({ calls: [], lifecycle: 'archived' });
      });
  });

  it('changes what is different only, and its tools when idle only', () => {
    given(created)
      .when((state) => decideUpdate(state, { title: null, metadata: {} }, ids()))
      .thenNothing();
    given(created)
      .when((state) => decideUpdate(state, { title: 'new', metadata: { a: '1' } }, ids()))
      .then({ id: 'sevt_1', type: 'session.updated', data: { title: 'new', metadata: { a: '1' } } });
    given(...asking)
      .when((state) => decideUpdate(state, { agent: { tools: [] } }, ids()))
      .thenRefused('session.running');
  });
});

describe('a message', () => {
  it('starts a turn on an idle session and waits in a running one', () => {
    given(created, message('a'))
      .when((state) => startTurn(state, { generation: 1, worker: 'w', contextLimitTokens: CONTEXT }, ids()))
      .then(
        {
          id: 'sevt_2',
          type: 'session.turn_started',
          data: { turn_id: 'turn_1', generation: 1, worker: 'w', takeover: false },
        },
        {
          id: 'sevt_3',
          type: 'session.message_processed',
          data: { event_id: 'a', message: { type: 'user.message', content: text('a') } },
        },
        { id: 'sevt_4', type: 'session.status_running', data: {} },
      );
    given(created, message('a'))
      .when(() => [])
      .thenState((state) => expect(follows(state)).toBe('start'));
    given(...asking, message('b'))
      .when(() => [])
      .thenState((state) => expect(follows(state)).toBe('nothing'));
  });

  it('is taken up alone, so that each gets an answer of its own', () => {
    given(created, message('a'), message('b'), started(), running)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.message_processed', 'span.model_request_start']);
        expect(state.queue.map(({ id }) => id)).toEqual(['b']);
      });
    given(...asking, message('b'))
      .when((state) => goOn(answerModelRequest(state, plainAnswer, ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual([
          'agent.message',
          'span.model_request_end',
          'session.message_processed',
          'span.model_request_start',
        ]);
        expect(state.status).toBe('running');
      });
  });

  it('joins the running turn when it steers, but not the retry of a call that failed', () => {
    given(...asking, answered(), use('c'), message('s', { steer: true }), message('b'), result('c'))
      .when(goOn())
      .thenState((state) => expect(state.queue.map(({ id }) => id)).toEqual(['b']));
    given(...asking, ...failed(1, 50), message('s', { steer: true }))
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.status_running', 'span.model_request_start']);
        expect(state.queue).toHaveLength(1);
      });
  });
});

const plainAnswer: ModelAnswer = {
  content: [{ type: 'text', id: 'sevt_message', text: 'hello' }],
  calls: [],
  usage: usage(),
  costUsd: null,
  finishReason: 'stop',
  refusal: null,
  gatewayCallId: null,
};

describe('the end of a turn', () => {
  it('is one idle event, the last', () => {
    given(...asking)
      .when((state) => goOn(answerModelRequest(state, plainAnswer, ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['agent.message', 'span.model_request_end', 'session.status_idle']);
        expect(state).toMatchObject({ status: 'idle', turn: null, owesStep: false, openRequest: null });
        expect(drafts[0]?.id).toBe('sevt_message');
      });
  });

  it('says that the model refused, and what it said of it; the next call starts anew', () => {
    const refusal = { category: 'cyber', explanation: 'no' };
    given(...asking)
      .when((state) => goOn(answerModelRequest(state, { ...plainAnswer, content: [], refusal }, ids()))(state))
      .thenState((state, drafts) => {
        expect(drafts.at(-1)?.data).toEqual({ stop_reason: { type: 'refusal' }, refusal });
        expect(state).toMatchObject({ status: 'idle', stopReason: { type: 'refusal' } });
      });
    given(...asking, message('b'))
      .when((state) => goOn(answerModelRequest(state, { ...plainAnswer, refusal }, ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts).at(-1)).toBe('span.model_request_start');
        expect(state.refusal).toBeNull();
      });
  });

  it('keeps what was thought and said, in its order and under the ids that went out', () => {
    const blocks = [{ type: 'thinking' as const, thinking: 'hm', signature: 's' }];
    const content = [{ type: 'thinking' as const, id: 'sevt_t', blocks }, ...plainAnswer.content];
    given(...asking)
      .when((state) => answerModelRequest(state, { ...plainAnswer, content }, ids()))
      .thenState((_state, drafts) => {
        expect(drafts.slice(0, 2)).toEqual([
          { id: 'sevt_t', type: 'agent.thinking', data: { blocks } },
          { id: 'sevt_message', type: 'agent.message', data: { content: [{ type: 'text', text: 'hello' }] } },
        ]);
      });
  });

  it('waits for the client where calls need it, and for nothing else', () => {
    given(...asking, answered(), use('run'), use('ask', 'ask'), customUse('own'))
      .when(() => [])
      .thenState((state) => expect(step(state)).toMatchObject({ kind: 'tools', calls: [{ id: 'run' }] }));
    given(...asking, answered(), use('run'), use('ask', 'ask'), customUse('own'), result('run'), kept())
      .when(goOn())
      .then({
        id: 'sevt_1',
        type: 'session.status_idle',
        data: { stop_reason: { type: 'requires_action', event_ids: ['ask', 'own'] } },
      });
  });
});

describe('files that calls changed', () => {
  const worked = [...asking, answered(), use('run'), result('run')];
  const done = [...worked, asked(), answered()];

  it('are kept before the turn ends, however it ends, and while it goes on it goes on (C1)', () => {
    given(...worked)
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'model' }));
    for (const history of [done, [...worked, customUse('own')], [...worked, interrupt]])
      given(...history)
        .when(goOn())
        .thenState((state, drafts) => {
          expect(drafts).toEqual([]);
          expect(step(state)).toEqual({ kind: 'checkpoint' });
        });
    given(...worked, use('open'), interrupt)
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'interrupted' }));
    given(...done)
      .when((state) =>
        goOn([recordCheckpoint({ checkpointId: 'ckpt_a', throughVersion: state.version }, ids())])(state),
      )
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.checkpointed', 'session.status_idle']);
        expect(hasUnkeptFiles(state)).toBe(false);
      });
  });

  it('are kept once: a turn that ran nothing in a sandbox ends at once', () => {
    given(...done, kept(), idle('end_turn'), message('b'), started(2), running, processed('b'), asked(), answered())
      .when(goOn())
      .thenState((_state, drafts) => expect(types(drafts)).toEqual(['session.status_idle']));
    given(...asking, answered(), use('no', 'ask'), result('no', 5, 'denied'), asked(), answered())
      .when(() => [])
      .thenState((state) => expect(step(state)).toMatchObject({ kind: 'idle' }));
  });

  it('are not those of calls that a fork closes', () => {
    const fork = (version: number): Fork => ({
      from: { session_id: 'sesn_a', root_session_id: 'sesn_a', event_id: 'sevt_a', version },
      ...{ agent: null, environmentId: 'env_a', title: null, metadata: null, selfHosted: false, files: null },
    });
    given(...worked, attached('J1'), use('open'))
      .when((state) => decideFork(state, fork(state.version), ids()))
      .thenState((state, drafts) => {
        const [first] = drafts;
        const missing = first?.type === 'session.forked' ? first.data.from.missing_call_ids : [];
        expect(missing).toHaveLength(1);
        expect(state.effects.map(({ callId }) => callId)).toEqual(missing);
        expect([state.status, hasUnkeptFiles(state)]).toEqual(['idle', false]);
      });
  });

  it('from before there were checkpoints hold no turn up, and are kept with the next', () => {
    const old = [...done, idle('end_turn'), message('b'), started(2), running, processed('b'), asked(), answered()];
    given(...old)
      .when(goOn())
      .thenState((_state, drafts) => expect(types(drafts)).toEqual(['session.status_idle']));
    given(...old, use('more'), result('more'), asked(), answered())
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'checkpoint' }));
  });

  it('of a worker’s are its own', () => {
    const own: Past = { ...created, data: { ...created.data, self_hosted: true } } as Past;
    given(own, message('a'), started(1), running, processed('a'), asked(), answered(), use('far'), result('far'))
      .when(() => [])
      .thenState((state) => expect(hasUnkeptFiles(state)).toBe(false));
  });

  it('that cannot be kept hold no turn up, and are to be kept with the next', () => {
    given(...done)
      .when((state) => goOn([giveUpCheckpoint(state, { code: 'over', message: 'too much' }, ids())])(state))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.checkpoint_failed', 'session.status_idle']);
        expect(state.effects.map(({ callId }) => callId)).toEqual(['run']);
      });
  });

  it('are missing in a sandbox that began anew, when their calls came after what was kept', () => {
    const first = [...asking, answered(), attached('J1'), use('a'), result('a'), use('b'), result('b')];
    const files = (throughVersion: number | null) => ({
      journalId: 'J2',
      checkpoint: throughVersion === null ? null : { checkpointId: 'ckpt_a', throughVersion },
    });
    given(...first, use('c'), attached('J2'))
      .when((state) => {
        const a = state.effects[0]?.version ?? 0;
        const restored = recordRestore(state, files(a), ids());
        expect(restored?.data).toMatchObject({ missing_call_ids: ['b'], checkpoint_id: 'ckpt_a' });
        expect(restored === null ? '' : restoreNote(restored)).toMatch(/did to files is missing: b\./);
        expect(recordRestore(state, files(null), ids())?.data.missing_call_ids).toEqual(['a', 'b']);
        return restored === null ? [] : [restored];
      })
      .thenState((state) => {
        expect(state.effects).toEqual([]);
        // Told once for a journal.
        expect(recordRestore(state, files(0), ids())).toBeNull();
      });
    // A first sandbox is empty, and nothing was lost.
    given(...first)
      .when(() => [])
      .thenState((state) => expect(recordRestore(state, { journalId: 'J1', checkpoint: null }, ids())).toBeNull());
  });
});

describe('a call that waits for the client', () => {
  const waiting = [...asking, answered(), use('ask', 'ask'), customUse('own'), idle(['ask', 'own'])];
  const confirm = (answer: 'allow' | 'deny'): ClientEventParam =>
    ({ type: 'user.tool_confirmation', tool_use_id: 'ask', result: answer }) as unknown as ClientEventParam;
  const allowed: Past = {
    id: 'sevt_yes',
    type: 'user.tool_confirmation',
    data: { tool_use_id: 'ask', result: 'allow', deny_message: null },
  };

  it('shows the rest when some are answered, and starts when none is left', () => {
    given(...waiting, allowed)
      .when(whatFollows({ answered: true }))
      .then({
        id: 'sevt_1',
        type: 'session.status_idle',
        data: { stop_reason: { type: 'requires_action', event_ids: ['own'] } },
      });
    given(...waiting, message('b'))
      .when(() => [])
      .thenState((state) => expect(follows(state)).toBe('nothing'));
    given(...waiting, allowed, {
      id: 'sevt_own',
      type: 'user.custom_tool_result',
      data: { custom_tool_use_id: 'own', content: text('42'), is_error: false },
    })
      .when(() => [])
      .thenState((state) => expect(follows(state)).toBe('start'));
  });

  it('takes the same answer again as the first, and refuses another one', () => {
    given(...waiting, allowed)
      .when((state) => {
        expect(decideClientEvent(state, confirm('allow'), ids())).toEqual({ repeated: 'sevt_yes' });
        return [];
      })
      .thenNothing();
    given(...waiting, allowed)
      .when((state) => stored(state, confirm('deny')))
      .thenRefused('session.call-answered');
    given(...asking)
      .when((state) => stored(state, confirm('allow')))
      .thenRefused('session.call-not-waiting');
  });

  it('is remembered for its newest answers, not for all there ever were', () => {
    const many = Array.from({ length: 200 }, (_, n): Past[] => [
      customUse(`call${n}`),
      {
        id: `sevt_answer${n}`,
        type: 'user.custom_tool_result',
        data: { custom_tool_use_id: `call${n}`, content: text('x'), is_error: false },
      },
    ]).flat();
    given(...asking, ...many)
      .when(() => [])
      .thenState((state) => {
        expect(Object.keys(state.answers)).toHaveLength(64);
        expect(state.answers['user.custom_tool_result call199']?.eventId).toBe('sevt_answer199');
      });
  });

  it('is closed by an interrupt; nothing runs afterwards', () => {
    given(...waiting, interrupt)
      .when(whatFollows({ interrupted: true }))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['agent.tool_result', 'user.custom_tool_result', 'session.status_idle']);
        expect(state).toMatchObject({ calls: [], owesStep: false, status: 'idle' });
      });
  });

  it('does not count the time that the client took to the wall time of the turn (T6)', () => {
    const confirmed: Past = { ...allowed, atMs: 3_600_000 };
    given(
      ...asking,
      answered(),
      use('ask', 'ask', 1_000),
      idle(['ask'], 1_000),
      confirmed,
      started(2, { atMs: 3_600_000 }),
      running,
      result('ask', 3_601_000),
      kept(),
    )
      .when(() => [])
      .thenState((state) => {
        expect(step(state, 3_602_000)).toEqual({ kind: 'model' });
        expect(step(state, 3_600_000 + BOUNDS.wallTimeMs)).toEqual({ kind: 'limit', limit: 'wall_time' });
      });
  });
});

describe('a call that an environment worker runs', () => {
  const own: Past = { ...created, data: { ...created.data, self_hosted: true } } as Past;
  const worked = [own, message('a'), started(), running, processed('a'), asked(), answered()];
  const attachedTo = (work: string): Past => ({
    id: `sevt_${work}`,
    type: 'session.worker_attached',
    data: { work_id: work, worker_id: 'one' },
  });
  const done = (id: string): ClientEventParam =>
    ({ type: 'user.tool_result', tool_use_id: id, content: text('ok') }) as unknown as ClientEventParam;
  const detach = (work: string) => (state: SessionState) =>
    detachWorker(state, { workId: work, reason: 'lost' }, ids());
  const fetching: Past = {
    id: 'web',
    type: 'agent.tool_use',
    data: { name: 'web_fetch', input: {}, evaluated_permission: 'allow' },
  };

  it('waits for it as a client’s does; what the platform runs comes first', () => {
    given(...worked, use('run'), fetching)
      .when(() => [])
      .thenState((state) => expect(step(state)).toMatchObject({ kind: 'tools', calls: [{ id: 'web' }] }));
    given(...worked, use('run'))
      .when(goOn())
      .thenState((state) => expect(state.stopReason).toEqual({ type: 'requires_action', event_ids: ['run'] }));
  });

  it('takes one result, the same one again, no other, and none before it is confirmed or in a cloud session', () => {
    const waiting = [...worked, use('run'), use('ask', 'ask'), idle(['run', 'ask'])];
    given(...waiting)
      .when((state) => [stored(state, done('run'))])
      .thenState((state) => {
        expect(state.calls.map(({ id }) => id)).toEqual(['ask']);
        expect(decideClientEvent(state, done('run'), ids())).toEqual({ repeated: 'sevt_1' });
        expect(() => decideClientEvent(state, { ...done('run'), is_error: true } as ClientEventParam, ids())).toThrow(
          'answered before',
        );
        expect(() => decideClientEvent(state, done('ask'), ids())).toThrow('waits for a result');
      });
    given(...asking, answered(), use('run'), idle(['run']))
      .when((state) => stored(state, done('run')))
      .thenRefused('session.not-self-hosted');
  });

  it('takes its result after its confirmation, and is the platform’s when it was denied', () => {
    const confirmed = (verdict: 'allow' | 'deny'): Past => ({
      id: 'sevt_answer',
      type: 'user.tool_confirmation',
      data: { tool_use_id: 'ask', result: verdict, deny_message: null },
    });
    const waiting = [...worked, use('ask', 'ask'), idle(['ask'])];
    given(...waiting, confirmed('allow'))
      .when((state) => [stored(state, done('ask'))])
      .thenState((state) => expect([state.calls, follows(state)]).toEqual([[], 'start']));
    given(...waiting, confirmed('deny'))
      .when(() => [])
      .thenState((state) => expect(runnableCalls(state)).toMatchObject([{ id: 'ask' }]));
  });

  it('is closed with its worker when it may have begun, and waits for the next one when it cannot have', () => {
    const unknown = { is_error: true, outcome: 'unknown' };
    given(...worked, use('before'), use('ask', 'ask'), idle(['before', 'ask']), attachedTo('w1'), use('after'))
      .when(detach('w1'))
      .thenState((state, drafts) => {
        expect(drafts).toMatchObject([
          { type: 'session.worker_detached', data: { work_id: 'w1', reason: 'lost' } },
          { type: 'user.tool_result', data: { tool_use_id: 'before', ...unknown } },
          { type: 'user.tool_result', data: { tool_use_id: 'after', ...unknown } },
        ]);
        expect(state.calls.map(({ id }) => id)).toEqual(['ask']);
      });
    // An item that ended before closes nothing of the next one's.
    given(...worked, use('run'), attachedTo('w2'))
      .when(detach('w1'))
      .thenState((state) => expect(state.calls).toHaveLength(1));
    given(...worked, attachedTo('w1'), { ...attachedTo('w1'), type: 'session.worker_detached' } as Past, use('run'))
      .when(detach('w1'))
      .thenState((state) => expect(state.calls).toHaveLength(1));
  });

  it('is closed by an interrupt as the worker would close it; one that it holds for a confirmation is denied first', () => {
    given(...worked, use('run'), use('ask', 'ask'), idle(['run', 'ask']), interrupt)
      .when(whatFollows({ interrupted: true }))
      .thenState((state, drafts) => {
        expect(drafts).toMatchObject([
          { type: 'user.tool_result', data: { tool_use_id: 'run', outcome: 'cancelled' } },
          { type: 'user.tool_confirmation', data: { tool_use_id: 'ask', result: 'deny' } },
          { type: 'agent.tool_result', data: { tool_use_id: 'ask', outcome: 'cancelled' } },
          { type: 'session.status_idle', data: { stop_reason: { type: 'end_turn' } } },
        ]);
        expect(state.calls).toEqual([]);
      });
  });
});

describe('an interrupt', () => {
  it('cuts the model call and ends the turn', () => {
    given(...asking, interrupt)
      .when((state) => cutTurn(state, [], INTERRUPTED, 'w', ids()))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['span.model_request_end', 'session.status_idle']);
        expect(state).toMatchObject({ interruptPending: false, openRequest: null });
      });
  });

  it('ends the wait for a retry too, and goes on with what is queued', () => {
    given(...asking, ...failed(1, 60_000), message('b'), interrupt)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual([
          'session.turn_started',
          'session.message_processed',
          'session.status_running',
          'span.model_request_start',
        ]);
        expect(state).toMatchObject({ retry: null, queue: [], turn: { modelSteps: 1 } });
      });
  });

  it('ends a turn that has not got to its message too; the ones behind it go on', () => {
    given(created, message('a'), started(0), running, message('b'), interrupt)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual([
          'session.message_processed',
          'session.turn_started',
          'session.message_processed',
          'span.model_request_start',
        ]);
        expect(drafts[0]?.data).toMatchObject({ event_id: 'a' });
        expect(state.queue).toEqual([]);
      });
    given(created, message('a'), started(0), running, interrupt)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.message_processed', 'session.status_idle']);
        expect(state).toMatchObject({ queue: [], status: 'idle' });
      });
  });

  it('is left to the worker where a tool may run', () => {
    given(...asking, answered(), use('c'), interrupt)
      .when(goOn())
      .thenNothing();
  });
});

describe('a model call that failed', () => {
  const failure = { type: 'model_overloaded_error', message: 'busy', attempt: 2, retryAt: at(900) } as const;

  it('is tried again when it is due, not before, also by a worker that takes the turn over', () => {
    given(...asking)
      .when((state) => failModelRequest(state, { ...failure, final: null }, 'w', ids()))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['span.model_request_end', 'session.error', 'session.status_rescheduled']);
        expect(state).toMatchObject({ status: 'rescheduling', retry: { attempt: 2 }, owesStep: true });
        expect(step(state, 899)).toEqual({ kind: 'wait', untilMs: BEGAN + 900 });
      });
    const waiting = [...asking, ...failed(1, 500)];
    given(...waiting)
      .when((state) =>
        goOn(startTurn(state, { generation: 2, worker: 'w2', contextLimitTokens: CONTEXT }, ids()), 499)(state),
      )
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.turn_started']);
        expect(state).toMatchObject({ generation: 2, retry: { attempt: 1 }, status: 'rescheduling' });
      });
    given(...waiting)
      .when((state) =>
        goOn(startTurn(state, { generation: 2, worker: 'w2', contextLimitTokens: CONTEXT }, ids()), 500)(state),
      )
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.turn_started', 'session.status_running', 'span.model_request_start']);
        expect(state.retry?.attempt).toBe(1);
      });
  });

  it('ends the turn when there is no further attempt, and what is queued gets its own', () => {
    given(...asking)
      .when((state) => failModelRequest(state, { ...failure, final: 'exhausted' }, 'w', ids()))
      .thenState((state, drafts) => {
        expect(drafts.at(-1)?.data).toEqual({ stop_reason: { type: 'retries_exhausted' } });
        expect(state).toMatchObject({ status: 'idle', owesStep: false, retry: null });
      });
    given(...asking, message('b'))
      .when((state) => goOn(failModelRequest(state, { ...failure, final: 'exhausted' }, 'w', ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts).slice(2)).toEqual([
          'session.turn_started',
          'session.message_processed',
          'span.model_request_start',
        ]);
        expect(state).toMatchObject({ queue: [], status: 'running' });
      });
  });
});

describe('a compaction that fails before the first call of a turn', () => {
  it('ends the turn with its message taken up, so that it does not begin again for ever', () => {
    const full = [...asking, answered({ input: CONTEXT }), idle(), message('b'), started(2), running];
    given(...full)
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'compact' }));
    const final = { type: 'compaction_limit_reached_error', message: 'full', final: 'exhausted', attempt: 1 } as const;
    given(...full)
      .when((state) => failModelRequest(state, { ...final, retryAt: '' }, 'w', ids()))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.error', 'session.message_processed', 'session.status_idle']);
        expect(state).toMatchObject({ status: 'idle', queue: [] });
      });
  });
});

describe('a takeover', () => {
  it('closes the model call that the lost worker left and asks again, taking up no message twice', () => {
    given(...asking)
      .when((state) =>
        goOn(startTurn(state, { generation: 2, worker: 'w2', contextLimitTokens: CONTEXT }, ids()))(state),
      )
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.turn_started', 'span.model_request_end', 'span.model_request_start']);
        expect(drafts[0]?.data).toMatchObject({ takeover: true, generation: 2 });
        expect(state).toMatchObject({ generation: 2, turn: { turnId: 'turn_a', modelSteps: 2 } });
      });
  });

  it('closes as unknown what a lost worker may have begun at an MCP server, and nothing else (T4)', () => {
    const mcp = (id: string, permission: 'allow' | 'ask' = 'allow'): Past => ({
      id,
      type: 'agent.mcp_tool_use',
      data: { mcp_server_name: 'tracker', name: 'find', input: {}, evaluated_permission: permission },
    });
    const word = (id: string, answer: 'allow' | 'deny'): Past => ({
      id: `sevt_${answer}_${id}`,
      type: 'user.tool_confirmation',
      data: { tool_use_id: id, result: answer, deny_message: null },
    });
    const takeOver = (state: SessionState) =>
      startTurn(state, { generation: 2, worker: 'w2', contextLimitTokens: CONTEXT }, ids());
    given(...asking, answered(), mcp('run'), mcp('ask', 'ask'), mcp('no', 'ask'), word('no', 'deny'), use('bash'))
      .when(takeOver)
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.turn_started', 'agent.mcp_tool_result']);
        expect(drafts[1]?.data).toMatchObject({ mcp_tool_use_id: 'run', is_error: true, outcome: 'unknown' });
        expect(state.calls.map(({ id }) => id)).toEqual(['ask', 'no', 'bash']);
      });
    // A turn for which no worker had room began nothing.
    const roomless: Past = {
      id: 'sevt_roomless',
      type: 'session.turn_started',
      data: { turn_id: 'turn_b', generation: 1, worker: 'none', takeover: false },
    };
    given(...asking, answered(), mcp('ask', 'ask'), idle(['ask']), word('ask', 'allow'), roomless, running)
      .when(takeOver)
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.turn_started']);
        expect(step(state)).toMatchObject({ kind: 'tools', calls: [{ id: 'ask', server: 'tracker' }] });
      });
  });

  it('knows under which journal each open call may have been sent first', () => {
    given(...asking, answered(), use('one'), use('two'), attached('J1'), use('three'), attached('J2'))
      .when(() => [])
      .thenState((state) =>
        expect(state.calls.map(({ id, journalId }) => [id, journalId])).toEqual([
          ['one', 'J1'],
          ['two', 'J1'],
          ['three', 'J1'],
        ]),
      );
    // A call that waits for the client is not sent before it is allowed.
    given(...asking, answered(), attached('J1'), use('ask', 'ask'), attached('J2'), {
      id: 'yes',
      type: 'user.tool_confirmation',
      data: { tool_use_id: 'ask', result: 'allow', deny_message: null },
    })
      .when(() => [])
      .thenState((state) => expect(state.calls[0]?.journalId).toBe('J2'));
  });
});

describe('the bounds of a turn (T6)', () => {
  const limitOf = (...history: Past[]) => {
    let found: unknown;
    given(...history)
      .when(() => [])
      .thenState((state) => {
        found = step(state, 30_000);
      });
    return found;
  };
  const owing = [...asking, answered(), use('c', 'allow', 1_000), result('c', 1_001)];

  it('are reached by steps, output, tool time and wall time, each by itself', () => {
    expect(limitOf(...owing)).toEqual({ kind: 'model' });
    expect(
      limitOf(...owing, asked(), answered(), use('d'), asked(), answered(), use('e'), result('d'), result('e'), kept()),
    ).toEqual({
      kind: 'limit',
      limit: 'model_steps',
    });
    expect(limitOf(...asking, answered({ output: 100 }), use('c'), result('c'), kept())).toEqual({
      kind: 'limit',
      limit: 'output_tokens',
    });
    expect(limitOf(...asking, answered(), use('c', 'allow', 1_000), result('c', 11_000), kept())).toEqual({
      kind: 'limit',
      limit: 'tool_time',
    });
    given(...owing, kept())
      .when(() => [])
      .thenState((state) => expect(step(state, 60_100)).toEqual({ kind: 'limit', limit: 'wall_time' }));
  });

  it('let a call that is open be answered: the last step that is allowed is whole', () => {
    const last = [...owing, asked(), answered(), use('d'), result('d'), asked()];
    given(...last)
      .when(() => [])
      .thenState((state) => {
        expect(state.turn?.modelSteps).toBe(BOUNDS.modelSteps);
        expect(step(state)).toEqual({ kind: 'model' });
      });
  });

  it('are an explicit event and end the turn, and every message has its own', () => {
    const spent = [...asking, answered({ output: 100 }), use('c'), result('c'), kept()];
    given(...spent)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.error', 'session.status_idle']);
        expect(drafts[0]?.data).toMatchObject({
          limit: 'output_tokens',
          error: { type: 'tool_use_limit_reached_error', retry_status: { type: 'exhausted' } },
        });
        expect(state.status).toBe('idle');
      });
    given(...spent, message('b'))
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual([
          'session.error',
          'session.turn_started',
          'session.message_processed',
          'span.model_request_start',
        ]);
        expect(state.turn).toMatchObject({ modelSteps: 1, outputTokens: 0, toolMs: 0 });
      });
  });
});

describe('a context that outgrew the model', () => {
  it('is compacted before the next call, which then goes on', () => {
    const full = [...asking, answered({ input: CONTEXT }), use('c'), result('c')];
    given(...full)
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'compact' }));
    given(...full, {
      id: 'sevt_compacted',
      type: 'agent.thread_context_compacted',
      data: { summary: 's', through_version: 9, model_usage: usage(), cost_usd: null },
    })
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'model' }));
  });
});

it('opens a model call with the system message that follows the message it takes up', () => {
  given(
    created,
    message('a'),
    { id: 'sys', type: 'system.message', data: { content: text('be brief') } },
    started(),
    running,
  )
    .when((state) => beginModelRequest(state, 'demo', ids()))
    .thenState((state, drafts) => {
      expect(types(drafts)).toEqual([
        'session.message_processed',
        'session.message_processed',
        'span.model_request_start',
      ]);
      expect([state.queue, blockedCalls(state)]).toEqual([[], []]);
    });
});

describe('a coding harness', () => {
  const withHarness: Past = {
    id: 'sevt_created',
    type: 'session.created',
    data: {
      agent: { ...agent, harness: { type: 'opencode' } },
      environment_id: 'env_a',
      title: null,
      metadata: {},
      context_key: null,
    },
  };
  const prompted: Past = { id: 'sevt_prompted', type: 'session.harness_prompted', data: { prompt_id: 'prompt_a' } };
  const progressed = (sequence: number): Past => ({
    id: `sevt_progress_${sequence}`,
    type: 'session.harness_progressed',
    data: { prompt_id: 'prompt_a', sequence, harness_session_id: 'ses_a' },
  });
  const harnessUse = (id: string, permission: 'allow' | 'ask' = 'allow'): Past => ({
    id,
    type: 'agent.tool_use',
    data: {
      ...{ name: 'bash', input: {}, evaluated_permission: permission },
      harness: { call_id: `native_${id}`, name: 'bash', input: {} },
    },
  });
  const spent = (type: 'exhausted' | 'retrying'): Past => ({
    id: 'sevt_error',
    type: 'session.error',
    data: { error: { type: 'billing_error', message: 'no budget', retry_status: { type } } },
  });
  const begun = [withHarness, message('a'), started(), processed('a'), running];
  const open = [...begun, prompted, progressed(1)];
  const end =
    (outcome: 'answered' | 'failed' | 'unknown', failure: string | null = null) =>
    (state: SessionState) =>
      goOn(endPrompt(state, { outcome, failure, raw: null }, 'w', ids()))(state);

  it('is prompted with the message that the turn begins with, once', () => {
    given(...begun)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.harness_prompted']);
        expect(state).toMatchObject({ owesStep: false, prompt: { sequence: 0 } });
        expect(step(state)).toEqual({ kind: 'prompt' });
        expect(goOn()(state)).toEqual([]);
      });
  });

  it('runs its own tools, and what it waits for shows only when nothing else runs', () => {
    given(...open, harnessUse('c'))
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'prompt' }));
    given(...open, harnessUse('c'), harnessUse('d', 'ask'))
      .when(() => [])
      .thenState((state) => expect(step(state)).toEqual({ kind: 'prompt' }));
    given(...open, harnessUse('d', 'ask'))
      .when(goOn())
      .thenState((state, drafts) => {
        expect(drafts.at(-1)?.data).toEqual({ stop_reason: { type: 'requires_action', event_ids: ['d'] } });
        expect(state).toMatchObject({ status: 'idle', prompt: { id: 'prompt_a', sequence: 1 } });
      });
  });

  it('goes on with its prompt once the client has answered, and is not prompted again', () => {
    const confirmed: Past = {
      id: 'sevt_yes',
      type: 'user.tool_confirmation',
      data: { tool_use_id: 'd', result: 'allow', deny_message: null },
    };
    given(...open, harnessUse('d', 'ask'), idle(['d']), confirmed)
      .when((state) => startTurn(state, { generation: 2, worker: 'w', contextLimitTokens: CONTEXT }, ids()))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.turn_started', 'session.status_running']);
        expect(step(state)).toEqual({ kind: 'prompt' });
        expect(state.prompt?.id).toBe('prompt_a');
      });
  });

  it('is given up by an interrupt while it waits for the client', () => {
    given(...open, harnessUse('d', 'ask'), idle(['d']))
      .when(whatFollows({ interrupted: true }))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['agent.tool_result', 'session.harness_finished', 'session.status_idle']);
        expect(state).toMatchObject({ status: 'idle', prompt: null, calls: [] });
      });
  });

  it('is stopped by the worker before an interrupt or a bound is in the log', () => {
    given(...open, interrupt)
      .when(goOn())
      .thenState((state, drafts) => {
        expect(drafts).toEqual([]);
        expect(step(state)).toEqual({ kind: 'interrupted' });
      });
    given(...open, harnessUse('c'), message('b'), interrupt)
      .when((state) => goOn(cutTurn(state, [], INTERRUPTED, 'w', ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual([
          ...['agent.tool_result', 'session.harness_finished', 'session.turn_started'],
          ...['session.message_processed', 'session.harness_prompted'],
        ]);
        expect(state.queue).toEqual([]);
      });
    given(...open)
      .when(() => [])
      .thenState((state) => expect(step(state, 60_100)).toEqual({ kind: 'limit', limit: 'wall_time' }));
    given(...open, harnessUse('c'), asked())
      .when((state) => goOn(limitReached(state, 'wall_time', 'w', ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual([
          ...['agent.tool_result', 'span.model_request_end', 'session.harness_finished'],
          ...['session.error', 'session.status_idle'],
        ]);
        expect(state).toMatchObject({ status: 'idle', calls: [], openRequest: null, prompt: null });
      });
  });

  it('ends its turn; what it left open has an explicit result', () => {
    given(...open)
      .when(end('answered'))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.harness_finished', 'session.status_idle']);
        expect(state).toMatchObject({ stopReason: { type: 'end_turn' }, harnessSessionId: 'ses_a', prompt: null });
      });
    given(...open, harnessUse('c'))
      .when(end('unknown', 'lost'))
      .thenState((state, drafts) => {
        expect(drafts[0]?.data).toMatchObject({ tool_use_id: 'c', outcome: 'unknown', is_error: true });
        expect(types(drafts).slice(1)).toEqual(['session.harness_finished', 'session.error', 'session.status_idle']);
        expect(state).toMatchObject({ stopReason: { type: 'retries_exhausted' }, calls: [] });
      });
  });

  it('that says it is done after a model call that failed for good is not believed', () => {
    given(...open, asked(), answered({}, { isError: true }), spent('exhausted'))
      .when(end('answered'))
      .thenState((state) => expect(state.stopReason).toEqual({ type: 'retries_exhausted' }));
    given(...open, asked(), answered({}, { isError: true }), spent('exhausted'), asked('sevt_request'), answered())
      .when(end('answered'))
      .thenState((state) => expect(state.stopReason).toEqual({ type: 'end_turn' }));
  });

  it('that has lost its session gets the same message again, as a new one', () => {
    given(...open)
      .when((state) => goOn(finishPrompt(state, 'session-lost', null, ids()))(state))
      .thenState((state, drafts) => {
        expect(types(drafts)).toEqual(['session.harness_finished', 'session.harness_prompted']);
        expect(state).toMatchObject({ harnessSessionId: null, prompt: { sequence: 0 } });
      });
  });
});
