import { describe, expect, it } from '@jest/globals';
import { WAITING_PREFIX } from '../sandbox/sandbox.messages.ts';
import { type ChatFrame, foldChat, startChat } from './session.chat.ts';
import { type SessionEvent, wireFrame } from './session.events.ts';
import { evolveSessionView, type SessionView, sessionResource } from './session.view.ts';

const usage = { input_tokens: 3, output_tokens: 4, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 };
const text = (value: string) => [{ type: 'text', text: value }];

function log(...entries: readonly [type: string, data: object][]): SessionEvent[] {
  return entries.map(
    ([type, data], i) =>
      ({
        id: `sevt_${i + 1}`,
        type,
        data,
        version: i + 1,
        recordedAt: new Date(Date.UTC(2026, 0, 1, 0, 0, i)).toISOString(),
        position: String(i + 1),
        workspaceId: '',
        streamId: 'session-sesn_1',
        schemaVersion: 1,
        metadata: {},
      }) as unknown as SessionEvent,
  );
}

const events = log(
  [
    'session.created',
    { agent: { id: 'agent_1', version: 1 }, environment_id: 'env_1', title: 'T', metadata: {}, context_key: null },
  ],
  ['user.message', { content: text('run it') }],
  ['session.turn_started', { turn_id: 't', generation: 1, worker: 'w', takeover: false }],
  ['session.status_running', {}],
  ['session.message_processed', { event_id: 'sevt_2', message: { type: 'user.message', content: text('run it') } }],
  ['user.message', { content: text('and then this') }],
  ['span.model_request_start', { model: 'm', message_id: 'sevt_8' }],
  ['agent.message', { content: text('I will') }],
  ['agent.tool_use', { name: 'bash', input: { command: 'ls' }, evaluated_permission: 'ask' }],
  [
    'span.model_request_end',
    {
      model_request_start_id: 'sevt_7',
      is_error: false,
      model_usage: usage,
      cost_usd: 0.25,
      finish_reason: 'tool_calls',
      gateway_call_id: null,
    },
  ],
  ['session.status_idle', { stop_reason: { type: 'requires_action', event_ids: ['sevt_9'] } }],
  ['user.tool_confirmation', { tool_use_id: 'sevt_9', result: 'allow', deny_message: null }],
  ['session.status_running', {}],
  [
    'agent.tool_result',
    { tool_use_id: 'sevt_9', content: text('file'), is_error: false, outcome: 'completed', full_output: null },
  ],
  ['agent.thread_context_compacted', { summary: 's', through_version: 5, model_usage: usage, cost_usd: null }],
  ['session.error', { error: { type: 'unknown_error', message: 'no', retry_status: { type: 'exhausted' } } }],
  ['session.updated', { title: 'New' }],
);
const framesOf = (list: readonly SessionEvent[]) =>
  list.flatMap((event): ChatFrame[] => {
    const wire = wireFrame(event);
    return wire === undefined ? [] : [{ version: event.version, event: wire }];
  });
const frames = framesOf(events);
const projected = events.reduce<SessionView | undefined>(evolveSessionView, undefined) as SessionView;
const start = () => startChat(sessionResource(projected, projected.updatedAt));
const delta = (id: string, piece: string): ChatFrame => ({
  version: null,
  event: {
    type: 'event_delta',
    event_id: id,
    delta: { type: 'content_delta', index: 0, content: { type: 'text', text: piece } },
  },
});
const opened = (id: string): ChatFrame => ({
  version: null,
  event: { type: 'event_start', event: { type: 'agent.message', id } },
});

describe('the chat fold', () => {
  it('agrees with the projection of the whole log', () => {
    expect(foldChat(start(), frames).view).toEqual(projected);
  });

  it('draws messages, tool calls with their results, and what waits', () => {
    const chat = foldChat(start(), frames);
    expect(chat.items).toMatchObject([
      { kind: 'message', id: 'sevt_2', from: 'user' },
      { kind: 'message', id: 'sevt_8', from: 'agent' },
      {
        kind: 'tool',
        id: 'sevt_9',
        name: 'bash',
        permission: 'ask',
        confirmed: 'allow',
        result: { at: events[13]?.recordedAt, isError: false },
      },
      { kind: 'note', note: 'compacted' },
      { kind: 'error', error: { message: 'no' } },
    ]);
    expect(chat.queued).toMatchObject([{ id: 'sevt_6', content: text('and then this') }]);
  });

  it('marks where a fork leaves the other session, and drops what waited there', () => {
    const place = { session_id: 'sesn_0', root_session_id: 'sesn_0', event_id: 'sevt_17', version: 17 };
    const from = { ...place, checkpoint: { id: 'ckpt_1', through_version: 2 }, missing_call_ids: ['sevt_4'] };
    const agent = { id: 'agent_2', version: 1 };
    const forked = log(
      ...events.map(({ type, data }): [string, object] => [type, data]),
      [
        'session.forked',
        { from, agent, environment_id: 'env_1', title: 'F', metadata: {}, dropped_event_ids: ['sevt_6'] },
      ],
      ['session.status_idle', { stop_reason: { type: 'end_turn' } }],
    );
    const view = forked.reduce<SessionView | undefined>(evolveSessionView, undefined) as SessionView;
    const chat = foldChat(startChat(sessionResource(view, view.updatedAt)), framesOf(forked));
    expect(chat.view).toEqual(view);
    expect(chat.queued).toEqual([]);
    expect(chat.items.at(-1)).toEqual({
      kind: 'forked',
      id: 'sevt_18',
      at: forked[17]?.recordedAt,
      from: { ...place, checkpoint: { id: 'ckpt_1', version: 2 }, missing_tool_use_ids: ['sevt_4'] },
    });
  });

  it('is the same in one batch, frame by frame, and with everything seen twice', () => {
    const whole = foldChat(start(), frames);
    expect(frames.reduce((chat, frame) => foldChat(chat, [frame]), start())).toEqual(whole);
    expect(foldChat(foldChat(start(), frames.slice(0, 9)), frames)).toEqual(whole);
    expect(foldChat(whole, frames)).toEqual(whole);
  });

  it('shows the open message until its event comes, also when its text is sent again', () => {
    let chat = foldChat(start(), [
      ...frames.slice(0, 5),
      opened('sevt_8'),
      delta('sevt_8', 'I '),
      delta('sevt_8', 'w'),
    ]);
    expect(chat.open).toEqual({ id: 'sevt_8', text: 'I w' });
    chat = foldChat(chat, [opened('sevt_8'), delta('sevt_8', 'I will'), delta('sevt_other', 'x')]);
    expect(chat.open).toEqual({ id: 'sevt_8', text: 'I will' });
    expect(foldChat(chat, frames).open).toBeNull();
  });

  it('shows thinking while it lasts, then where it was thought, and a refusal where the turn ended with one', () => {
    const thinking = { type: 'event_start', event: { type: 'agent.thinking', id: 'sevt_t' } } as const;
    let chat = foldChat(start(), [...frames.slice(0, 5), { version: null, event: thinking }, delta('sevt_t', 'hm')]);
    chat = foldChat(chat, [opened('sevt_8'), delta('sevt_8', 'I w')]);
    expect(chat).toMatchObject({ thinking: { id: 'sevt_t', text: 'hm' }, open: { id: 'sevt_8', text: 'I w' } });
    const blocks = [{ type: 'thinking', thinking: 'hm, this', signature: 'secret' }];
    const shown = framesOf(
      log(
        ['session.created', events[0]?.data ?? {}],
        ['agent.thinking', { blocks }],
        ['session.status_idle', { stop_reason: { type: 'refusal' }, refusal: { category: null, explanation: 'no' } }],
      ),
    ).map((frame) => ({ ...frame, version: (frame.version ?? 0) + 100 }));
    expect(JSON.stringify(shown)).not.toContain('secret');
    chat = foldChat(chat, shown);
    expect(chat.thinking).toBeNull();
    expect(chat.items.slice(-2)).toMatchObject([
      { kind: 'thinking', text: 'hm, this' },
      { kind: 'note', note: 'refused' },
    ]);
  });

  it('draws attempts that the platform repeats as one failure, and a later one as another', () => {
    const failures = log(
      ['session.created', events[0]?.data ?? {}],
      ...(['retrying', 'retrying', 'exhausted', 'retrying'] as const).flatMap((type, i): [string, object][] => [
        ['session.status_running', {}],
        ['session.error', { error: { type: 'unknown_error', message: `no ${i}`, retry_status: { type } } }],
      ]),
    );
    expect(foldChat(start(), framesOf(failures)).items).toMatchObject([
      { kind: 'error', id: 'sevt_3', attempts: 3, error: { message: 'no 2' } },
      { kind: 'error', id: 'sevt_9', attempts: 1, error: { message: 'no 3' } },
    ]);
  });

  describe('of a session that waits for its sandbox', () => {
    const waits = (reason: string): [string, object] => [
      'session.error',
      {
        error: {
          type: 'unknown_error',
          message: `${WAITING_PREFIX}since ${reason}`,
          retry_status: { type: 'retrying' },
          x_reason: reason,
        },
      },
    ];
    const use: [string, object] = ['agent.tool_use', { name: 'bash', input: {}, evaluated_permission: 'allow' }];
    const result = (id: string): [string, object] => [
      'agent.tool_result',
      { tool_use_id: id, content: text('file'), is_error: false, outcome: 'completed', full_output: null },
    ];
    const created: [string, object] = ['session.created', events[0]?.data ?? {}];
    const chatOf = (...entries: [string, object][]) => foldChat(start(), framesOf(log(created, ...entries)));

    it('tells the newest reason and since when, and is no failure', () => {
      const chat = chatOf(use, waits('pool-empty'), waits('unschedulable'));
      expect(chat.wait).toEqual({
        id: 'sevt_3',
        at: '2026-01-01T00:00:02.000Z',
        reason: 'unschedulable',
        message: 'since unschedulable',
      });
      expect(chat.items).toMatchObject([{ kind: 'tool', id: 'sevt_2', result: null }]);
    });

    it('settles with the first result, and a later wait is another', () => {
      const chat = chatOf(use, waits('pool-empty'), result('sevt_2'), use, waits('node-lost'), result('sevt_5'));
      expect(chat.wait).toBeNull();
      expect(chat.items).toMatchObject([
        { kind: 'tool', result: { isError: false } },
        { kind: 'waited', id: 'sevt_3', reason: 'pool-empty', until: '2026-01-01T00:00:03.000Z' },
        { kind: 'tool', result: { isError: false } },
        { kind: 'waited', id: 'sevt_6', reason: 'node-lost' },
      ]);
    });

    it('goes on while the platform’s own tools have results', () => {
      const chat = chatOf(
        use,
        ['agent.tool_use', { ...use[1], name: 'web_fetch' }],
        waits('node-lost'),
        result('sevt_3'),
      );
      expect(chat.wait).toMatchObject({ reason: 'node-lost' });
    });

    it.each<[string, object]>([
      ['session.status_idle', { stop_reason: { type: 'end_turn' } }],
      ['session.status_terminated', {}],
      ['span.model_request_start', { model: 'm', message_id: 'sevt_9' }],
    ])('settles with %s, when no result comes', (...over) => {
      const chat = chatOf(use, waits('quota-exceeded'), over);
      expect([chat.wait, chat.items.filter(({ kind }) => kind === 'waited').length]).toEqual([null, 1]);
    });

    it('keeps what was given up as a failure', () => {
      const [type, { error }] = waits('image-pull') as [string, { error: object }];
      const chat = chatOf(use, waits('image-pull'), [
        type,
        { error: { ...error, retry_status: { type: 'exhausted' } } },
      ]);
      expect(chat.items).toMatchObject([{ kind: 'tool' }, { kind: 'error' }]);
    });
  });

  it('draws the failures of two MCP servers as two, and calls of their tools with the server’s name', () => {
    const down = (mcp_server_name: string): [string, object] => [
      'session.error',
      {
        error: {
          type: 'mcp_connection_failed_error',
          message: `${mcp_server_name} is down`,
          retry_status: { type: 'retrying' },
          mcp_server_name,
        },
      },
    ];
    const use = { mcp_server_name: 'wiki', name: 'find', input: { at: 1 }, evaluated_permission: 'ask' };
    const answer = { content: text('found'), is_error: false, outcome: 'completed' };
    const all = log(
      ['session.created', events[0]?.data ?? {}],
      down('tracker'),
      down('files'),
      ['agent.mcp_tool_use', use],
      ['agent.mcp_tool_result', { ...answer, mcp_tool_use_id: 'sevt_4' }],
    );
    expect(foldChat(start(), framesOf(all)).items).toMatchObject([
      { kind: 'error', attempts: 1, error: { mcp_server_name: 'tracker' } },
      { kind: 'error', attempts: 1, error: { mcp_server_name: 'files' } },
      { kind: 'tool', id: 'sevt_4', name: 'find', server: 'wiki', permission: 'ask', result: { isError: false } },
    ]);
  });

  it('passes over types that it does not know', () => {
    const chat = foldChat(start(), [
      { version: 40, event: { id: 'sevt_x', type: 'session.novelty', processed_at: null } },
    ]);
    expect(chat.view.version).toBe(40);
    expect(chat.items).toEqual([]);
  });
});
