import { AgentsPage } from '../../../components/agents-page.tsx';

export const metadata = { title: 'Agents' };

export default function Page() {
  return <AgentsPage />;
}
