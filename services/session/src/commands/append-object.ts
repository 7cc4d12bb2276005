import { type Aggregate, type Command, type JsonObject, streamOf } from '@holdfast/contracts';
import { type CompanionStatement, derivedEventId, type EventLog } from '@holdfast/event-store';
import { commandMetadata } from './idempotent.ts';

/** Commits one audit event of a catalogue object together with its rows. `….created` is the first event of its stream. */
export async function appendObject(
  log: EventLog,
  command: Command,
  object: { readonly aggregate: Aggregate; readonly id: string },
  event: { readonly type: string; readonly data: object },
  statements: readonly CompanionStatement[],
): Promise<void> {
  await log.append({
    appends: [
      {
        streamId: streamOf(object.aggregate, object.id),
        workspaceId: command.workspaceId,
        ...(event.type.endsWith('.created') ? { expectedVersion: 0 } : {}),
        events: [
          {
            id: derivedEventId(command.commandId, 0),
            type: event.type,
            data: JSON.parse(JSON.stringify(event.data)) as JsonObject,
            metadata: commandMetadata(command),
          },
        ],
      },
    ],
    statements,
  });
}
