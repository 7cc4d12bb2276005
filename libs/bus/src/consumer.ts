import { channel } from 'node:diagnostics_channel';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type AppError,
  DEAD_LETTER_STREAM,
  deadLetterSubject,
  EVENTS_STREAM,
  eventVersions,
  type StoredEvent,
  toAppError,
} from '@holdfast/contracts';
import {
  AckPolicy,
  type ConsumerMessages,
  DeliverPolicy,
  type JsMsg,
  jetstream,
  jetstreamManager,
} from '@nats-io/jetstream';
import type { Bus, Registration } from './bus.ts';

export type Verdict = 'ack' | 'nak' | 'term';

export interface ConsumerOptions {
  /** `<service>-<reactor>`; every replica with this name shares the work. */
  readonly durable: string;
  /** One subject with wildcards (several filters are ignored by older servers). */
  readonly filterSubject: string;
  /**
   * Handles one event, perhaps again. A throw is judged by `verdict`: `nak` delivers it again later, `term` parks it.
   */
  readonly handle: (event: StoredEvent, facts: { dataInLog: boolean; deliveries: number }) => Promise<void>;
  readonly verdict: (error: AppError) => Verdict;
  /** After so many deliveries an event is parked in the dead-letter stream. */
  readonly maxDeliveries?: number;
  readonly maxAckPending?: number;
  readonly onError?: (error: unknown, subject: string) => void;
}

/** Named points at which specs kill the process. */
const step = channel('holdfast:step');
const ACK_WAIT_NS = 30 * 1_000_000_000;
/** Events are handled one after another; one that waits longer than the server's patience comes twice. */
const PREFETCH = 8;

/**
 * A durable pull consumer with explicit acks. Promises: each event is handled at least once; one that can never succeed
 * is parked in the dead-letter stream, not lost. It makes itself anew when the stream was made anew.
 */
export function consumeEvents(bus: Bus, options: ConsumerOptions): Registration {
  const stopping = new AbortController();
  let messages: ConsumerMessages | undefined;
  const loop = (async () => {
    while (!stopping.signal.aborted) {
      try {
        const manager = await jetstreamManager(bus.connection, { checkAPI: false });
        await manager.consumers.add(EVENTS_STREAM, {
          durable_name: options.durable,
          filter_subject: options.filterSubject,
          ack_policy: AckPolicy.Explicit,
          deliver_policy: DeliverPolicy.All,
          ack_wait: ACK_WAIT_NS,
          max_ack_pending: options.maxAckPending ?? 64,
        });
        const consumer = await jetstream(bus.connection).consumers.get(EVENTS_STREAM, options.durable);
        messages = await consumer.consume({
          max_messages: PREFETCH,
          idle_heartbeat: 2_000,
          abort_on_missing_resource: true,
        });
        if (stopping.signal.aborted) messages.stop();
        for await (const message of messages) await handleOne(bus, message, options);
      } catch (error) {
        if (stopping.signal.aborted) return;
        options.onError?.(error, options.filterSubject);
      }
      await sleep(500, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
  })();
  return {
    stop: async () => {
      stopping.abort();
      messages?.stop();
      await loop;
    },
  };
}

async function handleOne(bus: Bus, message: JsMsg, options: ConsumerOptions): Promise<void> {
  const deliveries = message.info.deliveryCount;
  const alive = setInterval(() => message.working(), 10_000);
  try {
    const stored = message.json<StoredEvent>();
    step.publish('event.received');
    const dataInLog = message.headers?.get('Holdfast-Data') === 'in-log';
    await options.handle(dataInLog ? stored : eventVersions.upcast(stored), { dataInLog, deliveries });
    step.publish('event.handled');
    message.ack();
  } catch (error) {
    const failure = toAppError(error);
    const verdict = deliveries >= (options.maxDeliveries ?? 10) ? 'term' : options.verdict(failure);
    options.onError?.(error, message.subject);
    if (verdict === 'ack') message.ack();
    else if (verdict === 'nak') message.nak(Math.min(30_000, 200 * 2 ** Math.min(deliveries, 8)));
    else {
      const parked = {
        consumer: options.durable,
        subject: message.subject,
        error: failure.toBody(),
        event: message.string(),
      };
      // Parked first: a lost message is worse than one parked twice.
      await jetstream(bus.connection).publish(deadLetterSubject(options.durable), JSON.stringify(parked), {
        expect: { streamName: DEAD_LETTER_STREAM },
      });
      message.term();
    }
  } finally {
    clearInterval(alive);
  }
}
