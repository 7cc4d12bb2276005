import { pageOf, sandboxPoolResource, sandboxResource, streamOf, timelinePage } from '@holdfast/contracts';
import type { CatalogueReader } from '../data/catalogue.reader.ts';
import type { EventReader } from '../data/event.reader.ts';
import { pathId } from './catalogue.operations.ts';
import { type Operation, operation } from './operation.ts';

/** Our own routes beside the wire contract: where tools run. The sandbox service alone changes what they show. */
export function sandboxOperations(parts: { reader: CatalogueReader; events: EventReader }): Operation[] {
  const { reader, events } = parts;
  return [
    operation({
      method: 'GET',
      path: '/v1/x/sandboxes',
      id: 'listSandboxes',
      summary: 'List sandboxes, newest first; destroyed ones where `status[]` asks for them.',
      answer: pageOf(sandboxResource),
      query: ['session_id', 'environment_id', 'status[]', 'limit', 'page'],
      handle: (exchange) => reader.sandboxes(exchange.principal.workspaceId, exchange.query),
    }),
    operation({
      method: 'GET',
      path: '/v1/x/sandboxes/:id',
      id: 'retrieveSandbox',
      summary: 'A sandbox: where it runs, or why it does not.',
      answer: sandboxResource,
      handle: (exchange) => reader.sandbox(exchange.principal.workspaceId, pathId(exchange, 'sandbox')),
    }),
    operation({
      method: 'GET',
      path: '/v1/x/sandboxes/:id/timeline',
      id: 'sandboxTimeline',
      summary: 'The sandbox’s log as it is stored.',
      answer: timelinePage,
      query: ['after', 'limit'],
      handle: async (exchange) => {
        const { id } = await reader.sandbox(exchange.principal.workspaceId, pathId(exchange, 'sandbox'));
        return events.timeline(streamOf('sandbox', id), exchange.query);
      },
    }),
    operation({
      method: 'GET',
      path: '/v1/x/sandbox_pools',
      id: 'listSandboxPools',
      summary: 'What environments keep warm: those that ask for a pool, or still have one.',
      answer: pageOf(sandboxPoolResource),
      query: ['limit', 'page'],
      handle: (exchange) => reader.sandboxPools(exchange.principal.workspaceId, exchange.query),
    }),
  ];
}
