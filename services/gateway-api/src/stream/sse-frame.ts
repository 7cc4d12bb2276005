import type { EventDeltaFrame, EventStartFrame, WireEvent } from '@holdfast/contracts';

/**
 * Server-sent events as the SDKs read them: an `event:` line always (frames without one are skipped), `id:` = the
 * session's log version on durable frames only, so the last event id of a client never leaves the log's numbering.
 */

/** Text of a durable frame from JSON that is already serialised (JSON never holds a raw line break). */
export function durableFrame(version: number, type: string, json: string): string {
  return `id: ${version}\nevent: ${type}\ndata: ${json}\n\n`;
}

export function wireEventFrame(version: number, event: WireEvent): string {
  return durableFrame(version, event.type, JSON.stringify(event));
}

export function startFrame(eventId: string, eventType: EventStartFrame['event']['type']): string {
  const frame: EventStartFrame = { type: 'event_start', event: { type: eventType, id: eventId } };
  return `event: event_start\ndata: ${JSON.stringify(frame)}\n\n`;
}

export function deltaFrame(eventId: string, text: string): string {
  const frame: EventDeltaFrame = {
    type: 'event_delta',
    event_id: eventId,
    delta: { type: 'content_delta', index: 0, content: { type: 'text', text } },
  };
  return `event: event_delta\ndata: ${JSON.stringify(frame)}\n\n`;
}

/** Ends a stream that did not come to its end: the SDKs throw on it, so nothing looks finished. */
export function errorFrame(type: string, message: string): string {
  return `event: error\ndata: ${JSON.stringify({ type: 'error', error: { type, message } })}\n\n`;
}

export const PING_FRAME = 'event: ping\ndata: {"type":"ping"}\n\n';
