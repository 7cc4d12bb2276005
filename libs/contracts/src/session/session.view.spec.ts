import { describe, expect, it } from '@jest/globals';
import { type SessionEvent, sessionEvents, wireFrame } from './session.events.ts';
import { evolveSessionView, type SessionView, sessionResource, waitsFor } from './session.view.ts';

let version = 0;
function stored(type: string, data: unknown, recordedAt = '2026-01-01T00:00:00.000Z'): SessionEvent {
  version += 1;
  return {
    id: `sevt_${version}`,
    type,
    data,
    version,
    recordedAt,
    position: String(version),
    workspaceId: 'wrkspc_a',
    streamId: 'session-sesn_1',
    schemaVersion: 1,
    metadata: {},
  } as SessionEvent;
}
function fold(events: readonly SessionEvent[]): SessionView | undefined {
  return events.reduce<SessionView | undefined>(evolveSessionView, undefined);
}
const created = () =>
  stored('session.created', {
    agent: { id: 'agent_1', version: 1 },
    environment_id: 'env_1',
    title: null,
    metadata: {},
    context_key: null,
  });

describe('the session read model', () => {
  it('follows status, queue, usage and time', () => {
    const message = stored('user.message', { content: [{ type: 'text', text: 'hi' }] });
    const usage = { input_tokens: 3, output_tokens: 4, cache_creation_input_tokens: 1, cache_read_input_tokens: 2 };
    const view = fold([
      created(),
      message,
      stored('session.status_running', {}, '2026-01-01T00:00:01.000Z'),
      stored('session.message_processed', { event_id: message.id, message: { type: 'user.message', content: [] } }),
      stored('span.model_request_end', {
        model_request_start_id: 'x',
        is_error: false,
        model_usage: usage,
        cost_usd: 0.5,
        finish_reason: 'stop',
        gateway_call_id: null,
      }),
      stored('session.status_idle', { stop_reason: { type: 'end_turn' } }, '2026-01-01T00:00:03.000Z'),
    ]);
    expect(view).toMatchObject({ status: 'idle', pending: [], activeMs: 2_000, stopReason: { type: 'end_turn' } });
    expect(sessionResource(view as SessionView, '2026-01-01T00:00:10.000Z')).toMatchObject({
      usage: { input_tokens: 3, output_tokens: 4, cache_read_input_tokens: 2, x_cost_usd: 0.5 },
      stats: { active_seconds: 2, duration_seconds: 10 },
    });
  });

  it('of a fork is what its own first event says, whether or not what it shares was folded before', () => {
    const from = { session_id: 'sesn_0', root_session_id: 'sesn_0', event_id: 'sevt_1', version: 3 };
    const forked = stored('session.forked', {
      from,
      agent: { id: 'agent_2', version: 7 },
      environment_id: 'env_2',
      title: 'T',
      metadata: { a: '1' },
      dropped_event_ids: [],
    });
    const shared = [
      created(),
      stored('user.message', { content: [{ type: 'text', text: 'hi' }] }),
      stored('session.status_running', {}),
      stored('session.status_terminated', {}),
    ];
    const view = fold([...shared, forked]);
    expect(view).toEqual(fold([forked]));
    expect(view).toMatchObject({ status: 'idle', pending: [], activeMs: 0, archivedAt: null, environmentId: 'env_2' });
    expect(sessionResource(view as SessionView, forked.recordedAt)).toMatchObject({
      agent: { id: 'agent_2' },
      forked_from: { ...from, checkpoint: null, missing_tool_use_ids: [] },
      usage: { input_tokens: 0 },
    });
    expect(sessionResource(fold([created()]) as SessionView, forked.recordedAt).forked_from).toBeNull();
  });

  it('knows what a self-hosted session waits for, and no more than that of others', () => {
    const own = () => stored('session.created', { ...created().data, self_hosted: true });
    const call = (name: string, permission: string): SessionEvent =>
      stored('agent.tool_use', { name, input: {}, evaluated_permission: permission }, '2026-01-01T00:00:05.000Z');
    const idle = (...calls: SessionEvent[]): SessionEvent =>
      stored('session.status_idle', {
        stop_reason: { type: 'requires_action', event_ids: calls.map(({ id }) => id) },
      });
    const [run, ask, fetch] = [call('bash', 'allow'), call('write', 'ask'), call('web_fetch', 'allow')];
    const waiting = [own(), run, ask, fetch, idle(run, ask)];
    const view = fold(waiting) as SessionView;
    expect(view.worker).toEqual({ calls: [run.id], since: run.recordedAt, unconfirmed: [ask.id] });
    expect(waitsFor(view)).toBe('client');
    const allowed = stored('user.tool_confirmation', { tool_use_id: ask.id, result: 'allow', deny_message: null });
    const both = fold([...waiting, allowed, idle(run, ask)]) as SessionView;
    expect([both.worker?.calls, waitsFor(both)]).toEqual([[run.id, ask.id], 'worker']);
    expect(sessionResource(both, both.updatedAt)).toMatchObject({ x_self_hosted: true, x_waits_for: 'worker' });
    const done = stored('user.tool_result', { tool_use_id: run.id, content: [], is_error: false });
    const denied = stored('agent.tool_result', { tool_use_id: ask.id, content: [], is_error: true, outcome: 'denied' });
    expect(fold([...waiting, done, denied])?.worker).toEqual({ calls: [], since: null, unconfirmed: [] });
    const cloud = fold([created(), run, idle(run)]) as SessionView;
    expect([cloud.worker, waitsFor(cloud)]).toEqual([undefined, 'client']);
  });

  it('ignores events of a session that was never created', () => {
    expect(fold([stored('session.status_running', {})])).toBeUndefined();
  });
});

describe('wire frames', () => {
  it('shows a queued message first without and then with its time stamp, under one id (S2)', () => {
    const message = stored('user.message', { content: [{ type: 'text', text: 'hi' }] });
    const processed = stored('session.message_processed', {
      event_id: message.id,
      message: { type: 'user.message', content: [{ type: 'text', text: 'hi' }] },
    });
    expect(wireFrame(message)).toEqual({
      id: message.id,
      type: 'user.message',
      processed_at: null,
      content: [{ type: 'text', text: 'hi' }],
    });
    expect(wireFrame(processed)).toEqual({
      id: message.id,
      type: 'user.message',
      processed_at: processed.recordedAt,
      content: [{ type: 'text', text: 'hi' }],
    });
  });

  it('gives internal events no frame', () => {
    const internal = sessionEvents.filter((event) => !('wire' in event)).map((event) => event.type);
    expect(internal.sort()).toEqual([
      'session.checkpointed',
      'session.created',
      'session.fork_created',
      'session.harness_finished',
      'session.harness_progressed',
      'session.harness_prompted',
      'session.model_side_call',
      'session.outputs_kept',
      'session.resources_changed',
      'session.sandbox_attached',
      'session.sandbox_restored',
      'session.turn_started',
      'session.worker_attached',
      'session.worker_detached',
    ]);
    expect(wireFrame(created())).toBeUndefined();
    expect(wireFrame(stored('no.such_type', {}))).toBeUndefined();
  });
});
