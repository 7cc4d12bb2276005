import { type SandboxReasonCode, WAITING_PREFIX } from '../sandbox/sandbox.messages.ts';
import { streamOf } from '../subjects.ts';
import { isSandboxTool } from '../wire/agents.ts';
import type { ContentBlock, ForkedFrom, SessionError, WireEvent } from '../wire/events.ts';
import type { Session } from '../wire/sessions.ts';
import { forkPointOf, type SessionEvent, WIRE_LOG_TYPES } from './session.events.ts';
import { evolveSessionView, type SessionView } from './session.view.ts';

/** A frame of the event stream; durable ones carry the log version that the stream gives as the SSE id. */
export interface ChatFrame {
  readonly version: number | null;
  readonly event: WireEvent | { readonly type: 'event_start' | 'event_delta'; readonly [field: string]: unknown };
}

export type ChatItem =
  | {
      readonly kind: 'message';
      readonly id: string;
      readonly from: 'user' | 'system' | 'agent';
      readonly at: string | null;
      readonly content: readonly ContentBlock[];
    }
  | ToolItem
  | {
      readonly kind: 'thinking';
      readonly id: string;
      readonly at: string | null;
      /** What the model showed of it; empty when it shows nothing. */
      readonly text: string;
    }
  | {
      readonly kind: 'error';
      readonly id: string;
      readonly at: string | null;
      /** The newest of a row of failures that nothing came between. */
      readonly error: SessionError;
      readonly attempts: number;
    }
  | {
      readonly kind: 'note';
      readonly id: string;
      readonly at: string | null;
      readonly note: 'interrupted' | 'compacted' | 'archived' | 'refused';
    }
  | { readonly kind: 'forked'; readonly id: string; readonly at: string | null; readonly from: ForkedFrom }
  | (SandboxWait & { readonly kind: 'waited' /** When it was over. */; readonly until: string | null });

/** A session waits for its sandbox; nothing has failed, and it goes on by itself. */
export interface SandboxWait {
  readonly id: string;
  /** Since when, whatever the reasons were. */
  readonly at: string | null;
  /** The newest one, and its particulars. */
  readonly reason: SandboxReasonCode;
  readonly message: string;
}

export interface ToolItem {
  readonly kind: 'tool';
  readonly id: string;
  readonly at: string | null;
  readonly name: string;
  readonly input: Readonly<Record<string, unknown>>;
  /** The MCP server whose tool it is; null for any other. */
  readonly server: string | null;
  /** True when the client runs it. */
  readonly custom: boolean;
  readonly permission: 'allow' | 'ask' | 'deny';
  readonly confirmed: 'allow' | 'deny' | null;
  readonly result: {
    readonly at: string | null;
    readonly content: readonly ContentBlock[];
    readonly isError: boolean;
  } | null;
}

/** What a chat page draws. */
export interface Chat {
  /** The same fold as the stored read model; its `version` is the cursor to resume from. */
  readonly view: SessionView;
  readonly items: readonly ChatItem[];
  /** Messages that were accepted and wait for the agent, oldest first. */
  readonly queued: readonly Extract<ChatItem, { kind: 'message' }>[];
  /** The message that is being written; its text may restart after a reconnect. */
  readonly open: { readonly id: string; readonly text: string } | null;
  /** The model's thinking, while its answer is not whole. */
  readonly thinking: { readonly id: string; readonly text: string } | null;
  /** What keeps the agent's tools from running now. */
  readonly wait: SandboxWait | null;
}

/** The start of the fold, from the session resource; everything that happened since comes from version 0 on. */
export function startChat(session: Session): Chat {
  const created = {
    type: 'session.created',
    streamId: `session-${session.id}`,
    workspaceId: '',
    version: 0,
    recordedAt: session.created_at,
    data: {
      agent: session.agent,
      environment_id: session.environment_id,
      title: session.title,
      metadata: session.metadata,
      context_key: session.x_context_key,
      self_hosted: session.x_self_hosted,
    },
  };
  const view = evolveSessionView(undefined, created as unknown as SessionEvent);
  if (view === undefined) throw new Error('A created session has a view.');
  return { view, items: [], queued: [], open: null, thinking: null, wait: null };
}

/**
 * Folds frames of the event stream, in their order. A durable frame at or below the chat's version was seen before and
 * changes nothing, so a stream may be resumed from any earlier cursor.
 */
export function foldChat(chat: Chat, frames: readonly ChatFrame[]): Chat {
  const draft: Draft = { ...chat, items: [...chat.items], queued: [...chat.queued] };
  for (const { version, event } of frames) {
    if (version === null) foldPreview(draft, event);
    else if (version > draft.view.version) foldDurable(draft, version, event as WireEvent);
  }
  return draft;
}

type Draft = { -readonly [K in keyof Chat]: Chat[K] } & { items: ChatItem[]; queued: Chat['queued'][number][] };

function foldPreview(draft: Draft, frame: ChatFrame['event']): void {
  if (frame.type === 'event_start') {
    const { id, type } = frame['event'] as { id: string; type: string };
    if (type === 'agent.message') draft.open = { id, text: '' };
    else if (type === 'agent.thinking') draft.thinking = { id, text: '' };
    return;
  }
  if (frame.type !== 'event_delta') return;
  const { content } = frame['delta'] as { content: { text: string } };
  for (const place of ['open', 'thinking'] as const) {
    const open = draft[place];
    if (open !== null && open.id === frame['event_id']) draft[place] = { id: open.id, text: open.text + content.text };
  }
}

function foldDurable(draft: Draft, version: number, event: WireEvent): void {
  const logged = loggedEvent(event, version, draft.view);
  // A type that a newer platform added changes nothing but the cursor.
  draft.view = logged === null ? { ...draft.view, version } : (evolveSessionView(draft.view, logged) ?? draft.view);
  const { id, processed_at: at } = event;
  const content = (event['content'] ?? []) as readonly ContentBlock[];
  switch (event.type) {
    case 'user.message':
    case 'system.message': {
      const from = event.type === 'user.message' ? 'user' : 'system';
      draft.queued = draft.queued.filter((message) => message.id !== id);
      (at === null ? draft.queued : draft.items).push({ kind: 'message', id, from, at, content });
      return;
    }
    case 'agent.message':
      draft.open = null;
      draft.items.push({ kind: 'message', id, from: 'agent', at, content });
      return;
    case 'agent.thinking':
      draft.thinking = null;
      draft.items.push({ kind: 'thinking', id, at, text: (event['x_text'] ?? '') as string });
      return;
    case 'agent.tool_use':
    case 'agent.mcp_tool_use':
    case 'agent.custom_tool_use':
      draft.items.push({
        kind: 'tool',
        id,
        at,
        name: event['name'] as string,
        input: event['input'] as Record<string, unknown>,
        server: (event['mcp_server_name'] ?? null) as string | null,
        custom: event.type === 'agent.custom_tool_use',
        permission: (event['evaluated_permission'] ?? 'allow') as ToolItem['permission'],
        confirmed: null,
        result: null,
      });
      return;
    case 'user.tool_confirmation':
      changeTool(draft, event['tool_use_id'], { confirmed: event['result'] as 'allow' | 'deny' });
      return;
    case 'user.tool_result':
    case 'agent.tool_result':
      changeTool(draft, event['tool_use_id'], { result: { at, content, isError: event['is_error'] === true } });
      if (isSandboxCall(draft, event['tool_use_id'])) settleWait(draft, at);
      return;
    case 'agent.mcp_tool_result':
      changeTool(draft, event['mcp_tool_use_id'], { result: { at, content, isError: event['is_error'] === true } });
      return;
    case 'user.custom_tool_result':
      changeTool(draft, event['custom_tool_use_id'], { result: { at, content, isError: event['is_error'] === true } });
      return;
    case 'session.error':
      addTrouble(draft, id, at, event['error'] as SessionError);
      return;
    case 'user.interrupt':
      draft.items.push({ kind: 'note', id, at, note: 'interrupted' });
      return;
    case 'agent.thread_context_compacted':
      draft.items.push({ kind: 'note', id, at, note: 'compacted' });
      return;
    case 'session.status_terminated':
      draft.items.push({ kind: 'note', id, at, note: 'archived' });
      draft.open = draft.thinking = null;
      settleWait(draft, at);
      return;
    case 'session.status_idle':
      if ((event['stop_reason'] as { type: string }).type === 'refusal')
        draft.items.push({ kind: 'note', id, at, note: 'refused' });
      draft.open = draft.thinking = null;
      settleWait(draft, at);
      return;
    case 'session.updated': {
      const from = event['forked_from'] as ForkedFrom | undefined;
      if (from === undefined) return;
      draft.open = null;
      draft.queued = [];
      settleWait(draft, at);
      draft.items.push({ kind: 'forked', id, at, from });
      return;
    }
    case 'span.model_request_start':
    case 'span.model_request_end':
    case 'session.deleted':
      draft.open = draft.thinking = null;
      settleWait(draft, at);
      return;
    default:
      return;
  }
}

/** A wait for the sandbox is no failure, however often its reason changes. */
function addTrouble(draft: Draft, id: string, at: string | null, error: SessionError): void {
  const { x_reason: reason, message, retry_status } = error;
  if (reason === undefined || retry_status.type !== 'retrying') addError(draft, id, at, error);
  else draft.wait = { ...(draft.wait ?? { id, at }), reason, message: message.replace(WAITING_PREFIX, '') };
}

/** Only what comes after the sandbox, or instead of it, says on the wire that the wait is over. */
function settleWait(draft: Draft, until: string | null): void {
  if (draft.wait === null) return;
  draft.items.push({ kind: 'waited', ...draft.wait, until });
  draft.wait = null;
}

/** Attempts that the platform repeats by itself are one entry: the newest failure, and how many there were. */
function addError(draft: Draft, id: string, at: string | null, error: SessionError): void {
  const last = draft.items.at(-1);
  if (
    last?.kind === 'error' &&
    last.error.retry_status.type === 'retrying' &&
    last.error.mcp_server_name === error.mcp_server_name
  )
    draft.items[draft.items.length - 1] = { ...last, at, error, attempts: last.attempts + 1 };
  else draft.items.push({ kind: 'error', id, at, error, attempts: 1 });
}

/** What the platform runs by itself goes on without a sandbox. */
function isSandboxCall(draft: Draft, id: unknown): boolean {
  const call = draft.items.findLast((item) => item.id === id);
  return call?.kind === 'tool' && call.server === null && isSandboxTool(call.name);
}

function changeTool(draft: Draft, id: unknown, change: Partial<ToolItem>): void {
  const at = draft.items.findLastIndex((item) => item.id === id);
  const item = draft.items[at];
  if (item?.kind === 'tool') draft.items[at] = { ...item, ...change };
}

/** The log event that a frame shows, as far as the view needs it: the inverse of `wireFrame`. */
function loggedEvent(event: WireEvent, version: number, view: SessionView): SessionEvent | null {
  if (!WIRE_LOG_TYPES.includes(event.type)) return null;
  const { id, type, processed_at: at, ...fields } = event;
  if (fields['forked_from'] !== undefined) {
    const from = forkPointOf(fields['forked_from'] as ForkedFrom);
    // The view began with the environment that the session has.
    const data = { ...fields, from, environment_id: view.environmentId };
    const place = { streamId: streamOf('session', view.id), workspaceId: view.workspaceId };
    return { id, version, type: 'session.forked', recordedAt: at, ...place, data } as unknown as SessionEvent;
  }
  const stamped = at !== null && (type === 'user.message' || type === 'system.message');
  return {
    id,
    version,
    type: stamped ? 'session.message_processed' : type,
    recordedAt: at ?? view.updatedAt,
    data: stamped
      ? { event_id: id, message: { type, ...fields } }
      : {
          ...fields,
          model_usage: fields['x_model_usage'] ?? fields['model_usage'],
          cost_usd: fields['x_cost_usd'] ?? null,
        },
  } as unknown as SessionEvent;
}
