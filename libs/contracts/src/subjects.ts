/**
 * Every NATS subject is built here. Grammar: `<verb class>.<aggregate>.<id>.<rest>`, wide to narrow.
 * `evt` is durable and published by the relay alone; `cmd` and `qry` are request/reply; `live` is volatile.
 */

/** JetStream stream that holds the durable events. */
export const EVENTS_STREAM = 'EVENTS';
/** JetStream stream for what can never succeed. */
export const DEAD_LETTER_STREAM = 'DEAD';
export const EVENTS_SUBJECTS = 'evt.>';
export const DEAD_LETTER_SUBJECTS = 'dead.>';

/** Aggregates that receive commands and own streams. */
export const AGGREGATES = ['session', 'sandbox', 'agent', 'environment', 'file', 'api_key', 'workspace'] as const;
export type Aggregate = (typeof AGGREGATES)[number];

/** The stream of one aggregate instance, `session-sesn_…`. */
export function streamOf(aggregate: Aggregate, id: string): string {
  return `${aggregate}-${id}`;
}

/** Splits a stream id into its aggregate and the instance's id. */
export function parseStream(streamId: string): { aggregate: string; id: string } {
  const dash = streamId.indexOf('-');
  return { aggregate: streamId.slice(0, dash), id: streamId.slice(dash + 1) };
}

/** Subject of a stored event: `evt.session.<id>.<type>`. */
export function eventSubject(streamId: string, type: string): string {
  const { aggregate, id } = parseStream(streamId);
  return `evt.${aggregate}.${id}.${type}`;
}

export function commandSubject(aggregate: Aggregate, id: string, verb: string): string {
  return `cmd.${aggregate}.${id}.${verb}`;
}

/** Wildcard a service subscribes to for all commands of one aggregate. */
export function commandSubjects(aggregate: Aggregate): string {
  return `cmd.${aggregate}.>`;
}

/** Splits a command or query subject into its parts. */
export function parseSubject(subject: string): { aggregate: string; id: string; verb: string } {
  const [, aggregate = '', id = '', ...rest] = subject.split('.');
  return { aggregate, id, verb: rest.join('.') };
}

/** The lease owner of a running session answers here with the open message's text so far. */
export function openPreviewSubject(sessionId: string): string {
  return `qry.session.${sessionId}.open-preview`;
}

/** The worker that runs a session's turn answers the model door here; nobody else does. */
export function modelDoorSubject(sessionId: string): string {
  return `qry.session.${sessionId}.model-door`;
}

/**
 * Commands that only the service holding a runner's link may answer, by the sandbox's id, or by the pod's UID while
 * nobody has claimed the pod.
 */
export function sandboxLinkSubject(
  id: string,
  verb: 'exec' | 'prompt' | 'permit' | 'cancel' | 'claim' | 'bind' | 'harvest' | 'checkpoint',
): string {
  return `cmd.sandbox.${id}.link.${verb}`;
}

/** Post-commit hint of one stream: `live.<aggregate>.<id>.committed`. */
export function committedSubject(streamId: string): string {
  const { aggregate, id } = parseStream(streamId);
  return `live.${aggregate}.${id}.committed`;
}
export const ALL_COMMITTED_SESSIONS = 'live.session.*.committed';

/** Token deltas of one session. */
export function deltaSubject(sessionId: string): string {
  return `live.session.${sessionId}.delta`;
}
export const ALL_SESSION_DELTAS = 'live.session.*.delta';

/** Wakes the relay after a commit; polling is only the fallback. */
export const RELAY_HINT = 'live.relay.all.hint';
/** Wakes turn workers with free capacity. */
export const TURN_HINT = 'live.turn.all.hint';
/** A credential was revoked: caches drop it and its open streams close. */
export const CREDENTIAL_REVOKED = 'live.api_key.all.revoked';
/** Every service instance says that it lives, once a second. */
export function serviceBeatSubject(service: string): string {
  return `live.service.${service}.beat`;
}
export const ALL_SERVICE_BEATS = 'live.service.*.beat';
export function deadLetterSubject(consumer: string): string {
  return `dead.${consumer}`;
}

export type ServiceName = 'gateway-api' | 'session' | 'sandbox' | 'dashboard';

/**
 * What each service's NATS user may do (B5). Only the session service hosts the relay and may publish `evt.>`.
 * `_INBOX.>` is for request/reply, `$JS.>` for JetStream's API.
 */
export const NATS_PERMISSIONS: Readonly<
  Record<Exclude<ServiceName, 'dashboard'>, { publish: string[]; subscribe: string[] }>
> = {
  'gateway-api': {
    publish: [
      'cmd.session.>',
      'cmd.agent.>',
      'cmd.environment.>',
      'cmd.file.>',
      'cmd.api_key.>',
      'cmd.workspace.>',
      'qry.>',
      'live.service.>',
      '$JS.API.INFO',
      '$JS.API.STREAM.INFO.>',
      '$JS.API.CONSUMER.NAMES.>',
      '$JS.API.CONSUMER.LIST.>',
      '$JS.API.CONSUMER.INFO.>',
      '$JS.API.DIRECT.GET.>',
      '$JS.API.STREAM.MSG.GET.>',
      '_INBOX.>',
    ],
    subscribe: ['live.>', '_INBOX.>'],
  },
  session: {
    publish: ['evt.>', 'dead.>', 'cmd.sandbox.>', 'live.>', '$JS.>', '_INBOX.>'],
    subscribe: [
      'cmd.session.>',
      'cmd.agent.>',
      'cmd.environment.>',
      'cmd.file.>',
      'cmd.api_key.>',
      'cmd.workspace.>',
      'qry.session.>',
      'live.>',
      '_INBOX.>',
    ],
  },
  sandbox: {
    publish: ['cmd.sandbox.>', 'qry.session.*.model-door', 'dead.>', 'live.>', '$JS.API.>', '$JS.ACK.>', '_INBOX.>'],
    subscribe: ['cmd.sandbox.>', 'qry.sandbox.>', 'live.>', '_INBOX.>'],
  },
};
